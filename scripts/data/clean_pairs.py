"""Which pairs of a parallel text are trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scripts.common.files import read_lines

#: Source, target, and whatever else belongs to a pair.
Row = tuple[str, ...]


@dataclass(frozen=True)
class Limits:
    """What Moses' ``clean-corpus-n.perl -ratio R FILE A B OUT 1 LONGEST`` keeps: lengths from 1 to
    ``longest`` (0: any), and neither side more than ``ratio`` times as long as the other (0: any)."""

    longest: int = 0
    ratio: float = 0

    def __bool__(self) -> bool:
        return bool(self.longest or self.ratio)

    def keep(self, source: str, target: str) -> bool:
        left, right = len(source.split()), len(target.split())
        short, long = sorted((left, right))
        if not short or (self.longest and long > self.longest):
            return False
        return not self.ratio or long <= self.ratio * short


def read_sides(paths: Sequence[Path]) -> Iterator[Row]:
    """Lines of like number together. The files are equally long: they were checked."""
    return zip(*(read_lines(path, blank=True) for path in paths), strict=True)


def select(rows: Iterable[Row], limits: Limits, filled: bool) -> Iterator[Row]:
    """Pairs within limits. ``filled``: both sides of a pair have text, whatever the limits."""
    for row in rows:
        if (not filled or (row[0] and row[1])) and (not limits or limits.keep(row[0], row[1])):
            yield row


def split_off(rows: Iterable[Row], every: int, held_out: bool) -> Iterator[Row]:
    """Every so many'th pair, or all others."""
    return (row for number, row in enumerate(rows, start=1) if (number % every == 0) == held_out)


def unique(rows: Iterable[Row]) -> Iterator[Row]:
    """Each pair once, by a hash of 8 bytes, about 60 bytes of memory a pair."""
    seen = set()
    for row in rows:
        key = hashlib.blake2b("\n".join(row).encode(), digest_size=8).digest()
        if key not in seen:
            seen.add(key)
            yield row
