"""What the documentation's Markdown says: its code blocks and its links. Needs no package."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent.parent

#: A word after ```sh -> what a reader sees above the block. There may be more than one word.
NEEDS = {
    "gpu": "needs a GPU",
    "download": "downloads",
    "minutes": "takes minutes",
    "hours": "takes hours",
}

_FENCE = re.compile(r"(?P<indent>[ \t>]*)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*?)[ \t]*")
_LINK = re.compile(r"(?<!\\)(?P<image>!?)\[(?P<text>(?:[^\[\]]|\[[^\[\]]*\])*)\]\((?P<target>[^()\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced code block.

    Attributes:
        path: the page.
        line: of its first line of text, counted from 1.
        language: the first word after the fence, "" without one.
        words: the other words after it.
        text: what is inside, without the fence's indent.
    """

    path: Path
    line: int
    language: str
    words: tuple[str, ...]
    text: str


def code_blocks(path: Path) -> Iterator[Block]:
    """The fenced blocks of a page, in order. One that is not closed ends with the page, as in CommonMark."""
    indent, fence, info, start, inside = "", "", "", 0, list[str]()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _FENCE.fullmatch(line)
        if not fence:
            if match:
                indent, fence, info = match["indent"], match["fence"], match["info"]
                start, inside = number + 1, []
        elif match and not match["info"] and match["fence"].startswith(fence):
            yield _block(path, start, info, inside)
            fence = ""
        else:
            inside.append(line.removeprefix(indent))
    if fence:
        yield _block(path, start, info, inside)


def _block(path: Path, line: int, info: str, inside: list[str]) -> Block:
    language, *words = info.split() or [""]
    return Block(path, line, language, tuple(words), "".join(f"{text}\n" for text in inside))


def prose_lines(text: str) -> Iterator[tuple[int, str, bool]]:
    """Line number from 0, line, and whether it is prose: outside of fences, and no fence itself."""
    fence = ""
    for number, line in enumerate(text.splitlines()):
        match = _FENCE.fullmatch(line)
        if match and (not fence or (not match["info"] and match["fence"].startswith(fence))):
            fence = "" if fence else match["fence"]
            yield number, line, False
        else:
            yield number, line, not fence


def links(line: str) -> Iterator[re.Match[str]]:
    """Links of a line of prose, with groups ``image`` ("!" or ""), ``text`` and ``target``; none in code."""
    spans = [match.span() for match in re.finditer(r"(`+)(?:(?!`).)+?\1(?!`)", line)]
    for match in _LINK.finditer(line):
        # Code may stand in a link's text, not around the link.
        if not any(start < match.start() < end for start, end in spans):
            yield match


def anchor(heading: str) -> str:
    """The anchor of a heading, as the site and code hosts make it."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", lambda match: match[1] or "", heading)
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


def anchors(text: str) -> set[str]:
    """The anchors of all headings of a page."""
    headings = (line for _, line, prose in prose_lines(text) if prose and re.match(r"#{1,6} ", line))
    return {anchor(line.lstrip("#")) for line in headings}
