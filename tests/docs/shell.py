"""Shell blocks of the documentation: which pages have them, and which commands stand in them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from scripts.docs.markdown import REPO, Block, code_blocks

_SHELLS = {"sh", "bash", "shell", "console"}
_ENDS = {";", "&&", "||", "|", "&", ";;", "|&", "{", "}"}
#: After these words another command begins.
_KEYWORDS = {"if", "then", "else", "elif", "do", "while", "until", "!", "time", "exec", "nohup"}


@dataclass(frozen=True)
class Command:
    """One simple command.

    Attributes:
        path, line: where it begins.
        env: what is assigned before it.
        words: the command and its arguments, without quotes and redirections.
    """

    path: Path
    line: int
    env: tuple[tuple[str, str], ...]
    words: tuple[str, ...]

    def __str__(self) -> str:
        name = self.path.relative_to(REPO) if self.path.is_relative_to(REPO) else self.path
        return f"{name}:{self.line}: {shlex.join(self.words)}"


def pages() -> list[Path]:
    """What a user reads: the pages of the site and the READMEs."""
    found = [REPO / "README.md", *REPO.glob("CONTRIBUTING.md"), *(REPO / "docs").rglob("*.md")]
    return sorted([*found, *(REPO / "examples").rglob("README.md")])


def shell_blocks(path: Path) -> list[Block]:
    return [block for block in code_blocks(path) if block.language in _SHELLS]


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block, those in loops and conditions too.

    Raises:
        ValueError: a quote is not closed.
    """
    for line, text in _logical_lines(block):
        text, within = _without_substitutions(text)
        for inner in within:
            yield from commands(replace(block, line=line, text=inner))
        lexer = shlex.shlex(text, posix=True, punctuation_chars=";&|<>")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in _ENDS:
                words.append(word)
                continue
            if command := _command(block.path, line, words):
                yield command
            words = []


def _logical_lines(block: Block) -> Iterator[tuple[int, str]]:
    """Lines that end with a backslash, or within quotes, go on with the next."""
    gathered, begin = "", 0
    for number, line in enumerate(block.text.splitlines(), start=block.line):
        begin = begin if gathered else number
        gathered += line
        if gathered.endswith("\\"):
            gathered = gathered[:-1] + " "
        elif _closed(gathered):
            yield begin, gathered
            gathered = ""
        else:
            gathered += "\n"
    if gathered:
        raise ValueError("a quote is not closed")


def _closed(text: str) -> bool:
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return True


def _without_substitutions(text: str) -> tuple[str, list[str]]:
    """`$(which fairseq-train)` is that command's name, what another `$(...)` prints is a value. Also what
    stands in those others."""
    within = re.findall(r"\$\((?!which |\()([^()]*)\)", text)
    text = re.sub(r"\$\(which +([\w-]+)\)", r"\1", text)
    return re.sub(r"\$\((?!\()[^()]*\)", "$VALUE", text), within


def _command(path: Path, line: int, words: list[str]) -> Command | None:
    words = _without_redirections(words)
    if words and words[0].startswith("("):
        words = [words[0].lstrip("("), *words[1:-1], *[word.rstrip(")") for word in words[1:][-1:]]]
    while words and words[0] in _KEYWORDS:
        words = words[1:]
    env = []
    while words and (match := re.fullmatch(r"([A-Za-z_]\w*)=(.*)", words[0], re.DOTALL)):
        env.append((match[1], match[2]))
        words = words[1:]
    if not words or words[0] in {"for", "case", "done", "fi", "esac"}:
        return None
    return Command(path, line, tuple(env), tuple(words))


def _without_redirections(words: list[str]) -> list[str]:
    kept: list[str] = []
    skip = False
    for word in words:
        if skip:
            skip = False
        elif re.fullmatch(r"[<>&|]+", word):
            skip = True
            if kept and re.fullmatch(r"[012]", kept[-1]):  # 2>&1 comes as three words
                kept.pop()
        else:
            kept.append(word)
    return kept
