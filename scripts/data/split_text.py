"""One text -> training, validation and test set, the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

from scripts.common.files import PrepareError, read_lines

#: One block of so many is for validation, and one for testing. A text of so many documents is cut between
#: documents.
SHARE = 50

#: Lines of the smallest block: a test on less says little about a model.
LEAST_LINES = 20


@dataclass(frozen=True)
class Split:
    """How a text is cut into blocks.

    Args:
        path: the text.
        begins: number of the first line of each block; blank lines do not count.
        whole: blocks are whole documents.
    """

    path: Path
    begins: tuple[int, ...]
    whole: bool

    @classmethod
    def of(cls, path: Path) -> Split:
        """Look at a text and decide.

        Raises:
            PrepareError: it has fewer than three lines.
        """
        sizes = _documents(path)
        count = sum(sizes)
        if count < 3:
            raise PrepareError(f"{path} has {count} lines with text; at least 3 are needed, one for each set")
        least = min(max(LEAST_LINES, count // (20 * SHARE)), count // 3)
        if len(sizes) >= SHARE:
            blocks = _joined(sizes, least)
            if len(blocks) >= 3:
                return cls(path, blocks, True)
        return cls(path, _joined([1] * count, least), False)

    def chosen(self) -> dict[int, str]:
        """Block -> "valid" or "test"; all others are for training."""
        blocks = len(self.begins)
        each = max(1, blocks // SHARE)
        chosen = {}
        for number in range(each):
            chosen[(3 * number + 1) * blocks // (3 * each)] = "valid"
            chosen[(3 * number + 2) * blocks // (3 * each)] = "test"
        return chosen

    def lines(self, split: str) -> Iterator[str]:
        """The lines of one set. A blank line goes with the text before it.

        Where a set leaves out what comes next, it has a blank line: its next document is another.
        """
        chosen = self.chosen()
        mine = [chosen.get(block, "train") == split for block in range(len(self.begins))]
        block, seen = -1, 0
        blank = True
        for line in read_lines(self.path, blank=True):
            if line:
                if block + 1 < len(mine) and seen == self.begins[block + 1]:
                    block += 1
                    if block and mine[block - 1] and not mine[block] and not blank:
                        yield ""
                seen += 1
            blank = not line
            if block >= 0 and mine[block]:
                yield line

    def __str__(self) -> str:
        what = "blocks of whole documents" if self.whole else "blocks of lines"
        each = len(self.chosen()) // 2
        return f"{len(self.begins):,} {what}, {each:,} of them for validation and {each:,} for testing"


def _documents(path: Path) -> list[int]:
    """Lines with text of every document; a document ends at a blank line."""
    sizes: list[int] = []
    blank = True
    for line in read_lines(path, blank=True):
        if line and blank:
            sizes.append(0)
        if line:
            sizes[-1] += 1
        blank = not line
    return sizes


def _joined(sizes: list[int], least: int) -> tuple[int, ...]:
    """Where blocks of at least ``least`` lines begin, when they end where one of ``sizes`` does."""
    begins = [0]
    total = sum(sizes)
    for end in accumulate(sizes):
        if end - begins[-1] >= least and total - end >= least:
            begins.append(end)
    return tuple(begins)
