"""docs/troubleshooting.md quotes the sentences that the package says, and names every repair of fairseq."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from tests.helpers import REPO

PAGE = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
#: Said by fairseq, torch, Python or the shell.
OTHERS = {
    "argument --arch/-a: invalid choice: 'mhe_transformer...'",
    "FileNotFoundError: .../mhe_fairseq",
    "Unsupported global: GLOBAL argparse.Namespace",
    "KeyError: None",
    "ModuleNotFoundError",
    "command not found",
}


def sentences() -> Iterator[str]:
    """Every text of the package, "..." in the place of values; parts of a concatenation are one text."""
    for path in (REPO / "mhe_fairseq").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                yield "".join(
                    str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values
                )
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value.replace("%s", "...")


def quoted() -> set[str]:
    return {text.strip("`") for text in re.findall(r"\*\*(`[^`]+`)\*\*", PAGE)} - OTHERS


def long_parts(quote: str) -> list[str]:
    """The parts of a quote between its values, of three words or more; of a short quote, the longest part."""
    parts = [part.strip(" .;()") for part in quote.split("...")]
    return [part for part in parts if len(part.split()) >= 3] or [max(parts, key=len)]


def is_said(part: str, said: list[str]) -> bool:
    """As it stands, or without one or two words at its beginning, which are values in the code."""
    words = part.split()
    tails = [" ".join(words[n:]) for n in range(3) if n == 0 or len(words) - n >= 3]
    return any(tail in text for tail in tails for text in said)


def test_quoted_errors_are_those_of_the_code() -> None:
    said = [re.sub(r"[\s`]+", " ", text) for text in sentences()]
    found = quoted()
    assert len(found) > 25, "quotes are bold code"
    unknown = [quote for quote in found if not all(is_said(part, said) for part in long_parts(quote))]
    assert not unknown, "said nowhere in mhe_fairseq: " + "; ".join(unknown)


def test_every_repair_of_fairseq_is_named() -> None:
    modules = {path.stem for path in (REPO / "mhe_fairseq" / "fairseq_fixes").glob("*.py")} - {"__init__"}
    table = PAGE[PAGE.index("## What the plugin mends in fairseq") : PAGE.index("## What differs")]
    assert modules == set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE))
