"""Which rows of a batch are scored on which groups of tokens, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.heads.base import to_list


@dataclass(frozen=True)
class GroupRows:
    """Where the rows of a group are in a table with a row for each of V tokens.

    Attributes:
        tokens: (V,) long, group after group.
        starts: where each group's tokens begin, and V.
        first: each group's first token if its tokens are consecutive ones, else -1.
    """

    tokens: Tensor
    starts: list[int]
    first: list[int]

    def size(self, group: int) -> int:
        return self.starts[group + 1] - self.starts[group]

    def read(self, table: Tensor, group: int) -> Tensor:
        """A group's rows, a view where they lie together. Shape: (V, d) -> (n, d)."""
        if self.first[group] >= 0:
            return table.narrow(0, self.first[group], self.size(group))
        return table.index_select(0, self._of(group))

    def add_product(self, table: Tensor, group: int, left: Tensor, right: Tensor) -> None:
        """Add left (m, n)^T @ right (m, d), in their type, to a group's rows of a (V, d) table."""
        if self.first[group] < 0:
            table.index_add_(0, self._of(group), (left.T @ right).to(table.dtype))
        else:
            add_product(self.read(table, group), left.T, right)

    def scale_(self, logits: Tensor, factors: Tensor, chunk: Chunk) -> None:
        """Multiply the logits of a chunk's pairs by one factor a token, in place.

        Shape: (m, n), (V,) in the order of ``tokens``.
        """
        for group, part in chunk.parts():
            logits[part].mul_(factors[self.starts[group] : self.starts[group + 1]])

    def _of(self, group: int) -> Tensor:
        return self.tokens[self.starts[group] : self.starts[group + 1]]


def add_product(to: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right, in their type, in place. Shape: (m, d), (m, n), (n, d)."""
    if to.dtype == left.dtype:
        to.addmm_(left, right)
    else:
        to += left @ right


def consecutive(tokens: Tensor, starts: list[int]) -> list[int]:
    """``GroupRows.first``. Shape: (V,) long."""
    jumps_before = torch.zeros_like(tokens)
    jumps_before[1:] = (tokens.diff() != 1).cumsum(0)
    begin, last = torch.tensor(starts[:-1]), torch.tensor(starts[1:]) - 1
    together = jumps_before[begin] == jumps_before[last]
    first: list[int] = torch.where(together, tokens[begin], -1).tolist()
    return first


class Segment(NamedTuple):
    """Pairs ``begin .. end`` are of ``group``."""

    group: int
    begin: int
    end: int


@dataclass
class Chunk:
    """Segments that follow one another, of groups of the same number of tokens.

    Attributes:
        size: n, the number of tokens of each group.
        begin, end: its pairs.
        home_begin, home_end: its targets.
        segments: of its pairs.
    """

    size: int
    begin: int
    end: int
    home_begin: int
    home_end: int
    segments: list[Segment] = field(default_factory=list)

    @property
    def pairs(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def targets(self) -> slice:
        return slice(self.home_begin, self.home_end)

    def parts(self) -> Iterator[tuple[int, slice]]:
        """Groups, and their pairs counted from the chunk's first."""
        for group, begin, end in self.segments:
            yield group, slice(begin - self.begin, end - self.begin)


def chunks_of(pairs: list[int], homes: list[int], sizes: list[int], most: int) -> list[Chunk]:
    """Of the groups with pairs.

    Args:
        pairs: number of pairs of each group.
        homes: number of rows whose gold group it is.
        sizes: number of tokens of each group.
        most: pairs in a chunk of several segments.
    """
    chunks: list[Chunk] = []
    begin = home = 0
    for group, (count, home_count, size) in enumerate(zip(pairs, homes, sizes, strict=True)):
        if not count:
            continue
        if not chunks or chunks[-1].size != size or begin + count - chunks[-1].begin > most:
            chunks.append(Chunk(size, begin, begin, home, home))
        chunks[-1].segments.append(Segment(group, begin, begin + count))
        begin, home = begin + count, home + home_count
        chunks[-1].end, chunks[-1].home_end = begin, home
    return chunks


class Plan(NamedTuple):
    """Which groups are scored for which of the N rows: R pairs (row, group), sorted by group, then row.

    A named tuple: ``torch.func`` finds the tensors in it.

    Every row is paired with its gold group ("home"), and with no group twice.

    Attributes:
        rows: (R,) long: the row of every pair.
        groups: (R,) long: its group.
        home: (N,) long: the pairs that are home.
        home_cells: (N,) long: where the targets of these are in the (m, n) logits of their chunk, read as
            one line.
        scored: (N,) long: the number of tokens that a row is scored on.
        chunks: of all pairs; one of several segments has at most N / 2 of them, so that what is gathered
            for a chunk stays small beside the features.
    """

    rows: Tensor
    groups: Tensor
    home: Tensor
    home_cells: Tensor
    scored: Tensor
    chunks: list[Chunk]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All but ``chunks``, in order."""
        return self[:-1]

    @classmethod
    def of(cls, meets: Tensor, gold: Tensor, place: Tensor, sizes: Tensor) -> Plan:
        """Plan a batch.

        Args:
            meets: (L, N) bool: rows to score on a group, those at home in it too.
            gold: (N,) long: gold groups.
            place: (N,) long: the targets' places in these.
            sizes: (L,) long: number of tokens of each group.
        """
        groups, rows = meets.nonzero(as_tuple=True)
        home = (groups == gold[rows]).nonzero().squeeze(1)
        # Together: one wait for an accelerator.
        pairs, homes = to_list(torch.stack([meets.sum(dim=1), gold.bincount(minlength=len(meets))]))
        chunks = chunks_of(pairs, homes, to_list(sizes), most=len(gold) // 2)
        begins = torch.tensor([chunk.begin for chunk in chunks], dtype=torch.long)
        targets = torch.tensor([chunk.home_end - chunk.home_begin for chunk in chunks], dtype=torch.long)
        in_chunk = home - begins.repeat_interleave(targets).to(home.device)
        sizes = sizes.to(gold.device)
        return cls(
            rows=rows,
            groups=groups,
            home=home,
            home_cells=in_chunk * sizes[groups[home]] + place[rows[home]],
            scored=torch.zeros_like(gold).index_add_(0, rows, sizes[groups]),
            chunks=chunks,
        )

    def features(self, x: Tensor, chunk: Chunk) -> Tensor:
        """Those of a chunk's pairs. Shape: (N, d) -> (m, d)."""
        if len(chunk.segments) == 1 and chunk.end - chunk.begin == len(x):
            return x  # all rows, in order
        return x.index_select(0, self.rows[chunk.pairs])
