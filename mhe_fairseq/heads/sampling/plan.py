"""Which rows of a batch are scored on which groups of tokens, in the order in which it is done."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.heads.base import to_list
from mhe_fairseq.heads.group_blocks import products_of_groups


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

    def read(self, table: Tensor, chunk: Chunk, dtype: torch.dtype) -> Sequence[Tensor]:
        """The rows of a chunk's groups, views where those of each lie together.

        Shape: (V, d) -> (n, d) of ``dtype`` each.
        """
        tokens = self._gathered(chunk)
        if tokens is None:
            return [rows.to(dtype) for rows in self._in_place(table, chunk)]
        return table.index_select(0, tokens).to(dtype).split(chunk.size)

    def add_products(self, table: Tensor, chunk: Chunk, left: Tensor, right: Tensor) -> None:
        """Add left (m, n)^T @ right (m, d) of each group's pairs, in their type, to its rows of a table.

        Shape: (V, d), and of all pairs of the chunk (m, n), (m, d).
        """
        tokens = self._gathered(chunk)
        if tokens is None:
            pairs = zip(left.split(chunk.counts), right.split(chunk.counts), strict=True)
            for rows, (each, other) in zip(self._in_place(table, chunk), pairs, strict=True):
                add_product(rows, each.T, other)
            return
        products = products_of_groups(left, right, chunk.counts)
        table.index_add_(0, tokens, products.to(table.dtype))

    def scale_(self, logits: Tensor, factors: Tensor, chunk: Chunk) -> None:
        """Multiply the logits of a chunk's pairs by one factor a token, in place.

        Shape: (m, n), (V,) in the order of ``tokens``.
        """
        for part, group in zip(logits.split(chunk.counts), chunk.groups, strict=True):
            part.mul_(factors[self.starts[group] : self.starts[group + 1]])

    def _in_place(self, table: Tensor, chunk: Chunk) -> list[Tensor]:
        """Views of the groups' rows. Shape: (V, d) -> (n, d) each."""
        return [table.narrow(0, self.first[group], chunk.size) for group in chunk.groups]

    def _gathered(self, chunk: Chunk) -> Tensor | None:
        """The tokens of a chunk's groups, one group after the other; None: those of each lie together.

        Shape: -> (number of groups * n,) long.
        """
        if all(self.first[group] >= 0 for group in chunk.groups):
            return None
        first, last = chunk.groups[0], chunk.groups[-1]
        if last - first + 1 == len(chunk.groups):
            return self.tokens[self.starts[first] : self.starts[last + 1]]
        return torch.cat([self.tokens[self.starts[group] : self.starts[group + 1]] for group in chunk.groups])


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


@dataclass
class Chunk:
    """The pairs of groups that follow one another, all of the same number of tokens.

    Attributes:
        size: n, the number of tokens of each group.
        begin, end: its pairs.
        home_begin, home_end: its targets.
        groups: of its pairs, in order; some in between may have none.
        counts: number of pairs of each.
    """

    size: int
    begin: int
    end: int
    home_begin: int
    home_end: int
    groups: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)

    @property
    def pairs(self) -> slice:
        return slice(self.begin, self.end)

    @property
    def targets(self) -> slice:
        return slice(self.home_begin, self.home_end)


def chunks_of(pairs: list[int], homes: list[int], sizes: list[int], rows: int) -> list[Chunk]:
    """Of the groups with pairs.

    Args:
        pairs: number of pairs of each group.
        homes: number of rows whose gold group it is.
        sizes: number of tokens of each group.
        rows: of the batch: a chunk of several groups has at most half as many pairs, and as many tokens.
    """
    chunks: list[Chunk] = []
    begin = home = 0
    for group, (count, home_count, size) in enumerate(zip(pairs, homes, sizes, strict=True)):
        if not count:
            continue
        last = chunks[-1] if chunks else None
        if (
            last is None
            or last.size != size
            or begin + count - last.begin > rows // 2
            or (len(last.groups) + 1) * size > rows
        ):
            last = Chunk(size, begin, begin, home, home)
            chunks.append(last)
        last.groups.append(group)
        last.counts.append(count)
        begin, home = begin + count, home + home_count
        last.end, last.home_end = begin, home
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
        chunks: of all pairs; one of several groups has at most N / 2 of them, and N tokens, so that what is
            gathered for a chunk stays small beside the features.
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
        chunks = chunks_of(pairs, homes, to_list(sizes), len(gold))
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
        if len(chunk.groups) == 1 and chunk.end - chunk.begin == len(x):
            return x  # all rows, in order
        return x.index_select(0, self.rows[chunk.pairs])
