"""Log-sum-exps over sets of digits, and logits of single digits, with one gradient for all of them.

A loss reads the same logits several times: for each digit's soft-max, for the sums over real tokens, at the
target and at the tokens of the smoothing term. Under autograd each of these makes a gradient (or keeps a
copy) as large as the logits. Here the logits are all that is kept, and one gradient is written, a block of
rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.heads.once import once

#: Bytes of logits worked on at a time. On the CPU they and what is made of them stay in the cache; elsewhere
#: blocks only bound the temporaries, and few of them keep the number of calls small.
_BLOCK_CPU = 2**20
_BLOCK = 2**25


class DigitSet:
    """Some values of one digit.

    Attributes:
        level: the digit, 0 for the first.
        values: (n,) long, rising; None: all values.
    """

    def __init__(self, level: int, values: Tensor | None) -> None:
        self.level = level
        self.values = values
        self._range: tuple[int, int] | None = None
        self._index = values
        if values is not None:
            start, count = int(values[0]), values.numel()
            if int(values[-1]) - start + 1 == count:
                self._range = (start, count)

    def read(self, scores: Tensor) -> Tensor:
        """The scores of these values, a view where they lie together. Shape: (..., L) -> (..., n)."""
        if self.values is None:
            return scores
        if self._range is not None:
            return scores.narrow(-1, *self._range)
        return scores.index_select(-1, self.index_on(scores.device))

    def add(self, scores: Tensor, part: Tensor) -> None:
        """Add to the scores of these values, in place. Shape: (..., L), (..., n)."""
        if self.values is None or self._range is not None:
            self.read(scores).add_(part)
        else:
            scores.index_add_(-1, self.index_on(scores.device), part)

    def index_on(self, device: torch.device) -> Tensor:
        assert self._index is not None
        if self._index.device != device:
            self._index = self._index.to(device)
        return self._index


class ColumnSums(NamedTuple):
    """What a loss needs of the logits.

    Attributes:
        sums: (M, N, K): log-sum-exp of the logits in each of M sets.
        own: (H, N, K): each row's own digits' logits.
        shared: (N, K, S): sums over the digits of the logits of S digit sequences.
    """

    sums: Tensor
    own: Tensor
    shared: Tensor


def column_sums(
    logits: Tensor,
    lengths: Sequence[int],
    sets: Sequence[DigitSet],
    own: Tensor,
    shared: Tensor,
) -> ColumnSums:
    """Sums and single logits of K components of H digits.

    Peak memory: the logits, one gradient of their size, and tensors of the size of the result. Not
    differentiable twice.

    Args:
        logits: (N, K * sum(lengths)), fp32 or float64: all components' logits of the first digit, then of
            the second, ...
        lengths: (L_1, ..., L_H).
        sets: M of them; the first H are all values of each digit, in order.
        own: (N, H) long: digits of every row.
        shared: (S, H) long: digit sequences read in all rows; S may be 0.
    """
    return ColumnSums(*_ColumnSums.apply(logits, tuple(lengths), sets, own, shared))


class _ColumnSums(torch.autograd.Function):
    @staticmethod
    def forward(
        logits: Tensor,
        lengths: tuple[int, ...],
        sets: Sequence[DigitSet],
        own: Tensor,
        shared: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        views = digit_views(logits, lengths)
        n, k = views[0].shape[:2]
        sums = logits.new_empty(len(sets), n, k)
        for block in _blocks(logits):
            rows = [view[block] for view in views]
            for each, total in zip(sets, sums, strict=True):
                torch.logsumexp(each.read(rows[each.level]), dim=-1, out=total[block])
        picked = torch.stack(
            [view.gather(-1, _own_index(own, h, k)).squeeze(-1) for h, view in enumerate(views)]
        )
        together = views[0].index_select(-1, shared[:, 0])
        for h, view in enumerate(views[1:], start=1):
            together += view.index_select(-1, shared[:, h])
        return sums, picked, together

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, ctx.lengths, ctx.sets, own, shared = inputs
        ctx.save_for_backward(logits, output[0], own, shared)

    @staticmethod
    def backward(ctx: Any, d_sums: Tensor, d_own: Tensor, d_shared: Tensor) -> tuple[Tensor | None, ...]:
        work = partial(_gradient, ctx.lengths, ctx.sets)
        return once(work, d_sums, d_own, d_shared, *ctx.saved_tensors), None, None, None, None


def _gradient(
    lengths: tuple[int, ...],
    sets: Sequence[DigitSet],
    d_sums: Tensor,
    d_own: Tensor,
    d_shared: Tensor,
    logits: Tensor,
    sums: Tensor,
    own: Tensor,
    shared: Tensor,
) -> Tensor:
    """Of the logits."""
    # Not in place of the logits: with ``retain_graph`` they are needed again.
    grad = torch.empty_like(logits)
    views, grads = digit_views(logits, lengths), digit_views(grad, lengths)
    k = views[0].size(1)
    for block in _blocks(logits):
        rows, d_rows = [view[block] for view in views], [view[block] for view in grads]
        for number, each in enumerate(sets):
            total, d_total = sums[number, block].unsqueeze(-1), d_sums[number, block].unsqueeze(-1)
            if number < len(views):
                # The first to write here; all digits are written, so the rest can add.
                torch.sub(rows[number], total, out=d_rows[number]).exp_().mul_(d_total)
            else:
                part = (each.read(rows[each.level]) - total).exp_().mul_(d_total)
                each.add(d_rows[each.level], part)
        for h, d_row in enumerate(d_rows):
            d_row.scatter_add_(-1, _own_index(own[block], h, k), d_own[h, block].unsqueeze(-1))
            if len(shared):
                # As fast as ``index_add_`` is slow in the last dimension.
                index = shared[:, h].expand(*d_row.shape[:2], -1)
                d_row.scatter_add_(-1, index, d_shared[block])
    return grad


def digit_views(logits: Tensor, lengths: Sequence[int]) -> list[Tensor]:
    """(N, K * sum(L_h)) -> H tensors (N, K, L_h), views."""
    k = logits.size(-1) // sum(lengths)
    parts = logits.split([k * length for length in lengths], dim=-1)
    return [part.unflatten(-1, (k, length)) for part, length in zip(parts, lengths, strict=True)]


def _own_index(own: Tensor, level: int, k: int) -> Tensor:
    """(N, H) -> (N, K, 1)."""
    return own[:, level].view(-1, 1, 1).expand(-1, k, -1)


def _blocks(logits: Tensor) -> Iterator[slice]:
    size = _BLOCK_CPU if logits.device.type == "cpu" else _BLOCK
    step = max(1, size // (logits.size(1) * logits.element_size()))
    for begin in range(0, logits.size(0), step):
        yield slice(begin, begin + step)
