"""Blocks and commands are found where they are."""

from __future__ import annotations

from pathlib import Path

from scripts.docs.markdown import anchor, code_blocks, links
from tests.docs.shell import commands


def _blocks(folder: Path, text: str):
    page = folder / "page.md"
    page.write_text(text)
    return list(code_blocks(page))


def test_blocks_with_their_lines_and_words(tmp_path: Path) -> None:
    text = "a\n```sh gpu hours\none\n```\n\n~~~\n```\n~~~\n  ```python\n  x\n    y\n  ```\n```sh\nopen"
    first, second, third, fourth = _blocks(tmp_path, text)
    assert (first.language, first.words, first.line, first.text) == ("sh", ("gpu", "hours"), 3, "one\n")
    assert (second.language, second.text) == ("", "```\n")
    assert (third.language, third.line, third.text) == ("python", 10, "x\n  y\n")
    assert (fourth.line, fourth.text) == (14, "open\n")


def test_commands_of_a_block(tmp_path: Path) -> None:
    text = (
        "```sh\n# none\nA=1 B='2 3' run --x \"y z\" > log 2>&1   # comment\nfirst | second && \\\n  third\n"
        "if ! test -e a; then go; else stay; fi\nfor x in 1 2; do walk $x; done\n"
        "echo 'two\nlines'\nlast\n```\n"
    )
    (block,) = _blocks(tmp_path, text)
    found = [(command.line, command.words) for command in commands(block)]
    assert found == [
        (3, ("run", "--x", "y z")),
        (4, ("first",)), (4, ("second",)), (4, ("third",)),
        (6, ("test", "-e", "a")), (6, ("go",)), (6, ("stay",)),
        (7, ("walk", "$x")),
        (8, ("echo", "two\nlines")),
        (10, ("last",)),
    ]  # fmt: skip
    assert next(commands(block)).env == (("A", "1"), ("B", "2 3"))


def test_links_are_those_outside_of_code() -> None:
    line = "[a](b.md#c) and `[no](no)` and [`code`](d) and ![picture](e.png)"
    assert [match["target"] for match in links(line)] == ["b.md#c", "d", "e.png"]


def test_anchors_are_the_sites() -> None:
    assert anchor("From which vocabulary on?") == "from-which-vocabulary-on"
    assert anchor("The `mhe` command, and [links](x.md)") == "the-mhe-command-and-links"
