"""Products of features with one group of a large table each: forward, and a backward written by hand.

Row i of the features meets the L rows of its group only. ``table[group]`` under autograd would build a
zero tensor of the size of the table for every group; here a table's gradient is allocated once and every
group's part of it is written once.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.heads.base import to_list
from mhe_fairseq.heads.light_groups import Runs, Split, split
from mhe_fairseq.heads.once import once

#: Bytes from which on a gradient on the CPU lies in huge pages.
_HUGE = 2**28

#: Up to so many rows are few; see ``_parts``.
_FEW = 8


@dataclass(frozen=True)
class Pairs:
    """Pairs (row of the features, group), sorted by group.

    Attributes:
        order: (R,) long: where each of the sorted pairs was when they were given.
        rows: (R,) long: the row of every pair; a row may be in many pairs, or in none.
        groups: (R,) long, rising.
        runs: each group at most once.
    """

    order: Tensor
    rows: Tensor
    groups: Tensor
    runs: Runs

    @classmethod
    def of(cls, groups: Tensor, rows: Tensor | None = None) -> Pairs:
        """Sort pairs. Without ``rows``, pair i is of row i. Shape: (R,) long, (R,) long."""
        order = groups.argsort(stable=True)
        groups = groups.index_select(0, order)
        present, counts = groups.unique_consecutive(return_counts=True)
        runs, begin = [], 0
        for group, count in to_list(torch.stack([present, counts], dim=-1)):
            runs.append((group, begin, begin + count))
            begin += count
        sorted_rows = order if rows is None else rows.index_select(0, order)
        return cls(order, sorted_rows, groups, runs)

    def restore(self, values: Tensor) -> Tensor:
        """Back to the order in which the pairs were given. Shape: (R, ...) -> (R, ...)."""
        return torch.empty_like(values).index_copy(0, self.order, values)


class Layout:
    """Where the rows of a group are in a weight.

    A weight (G, L, d) holds group g in ``weight[g]``. With ``token_of_slot`` the weight is (V, d), indexed
    by token, such as a tied embedding; slots without a token read some token's row, and write nothing.

    Args:
        groups: G.
        length: L.
        token_of_slot: (G * L,) long, -1 at holes, or None.
    """

    def __init__(self, groups: int, length: int, token_of_slot: Tensor | None = None) -> None:
        self.groups = groups
        self.length = length
        self._tokens: Tensor | None = None
        if token_of_slot is not None:
            real = token_of_slot.view(groups, length) >= 0
            self._tokens = token_of_slot.view(groups, length).clamp(min=0)
            self._is_token = real
            self._own = token_of_slot[token_of_slot >= 0]
            self._places = real.nonzero()[:, 1]
            sizes = real.sum(dim=1)
            self._starts: list[int] = [0, *sizes.cumsum(0).tolist()]

    def to(self, device: torch.device) -> Layout:
        """Move the indices, in place; no work where they are there already."""
        if self._tokens is not None and self._tokens.device != device:
            self._tokens = self._tokens.to(device)
            self._own, self._places = self._own.to(device), self._places.to(device)
            self._is_token = self._is_token.to(device)
        return self

    def read(self, weight: Tensor, group: int, dtype: torch.dtype) -> Tensor:
        """The rows of a group, (L, d) of ``dtype``; a view where it can be."""
        if self._tokens is None:
            return weight[group].to(dtype)
        return weight.index_select(0, self._tokens[group]).to(dtype)

    def read_each(self, weight: Tensor, groups: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of every group, (p,) -> (p, L, d) of ``dtype``."""
        if self._tokens is None:
            return weight.index_select(0, groups).to(dtype)
        tokens = self._tokens.index_select(0, groups)
        return weight.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).to(dtype)

    def read_all(self, weight: Tensor) -> Tensor:
        """(G * L, d) or (V, d): the whole weight as a matrix, see ``by_slot``."""
        return weight.flatten(0, 1) if self._tokens is None else weight

    def by_slot(self, logits: Tensor) -> Tensor:
        """Products with ``read_all`` -> (..., G, L)."""
        if self._tokens is not None:
            logits = logits.index_select(-1, self._tokens.flatten())
        return logits.unflatten(-1, (self.groups, self.length))

    def write_product(self, grad: Tensor, group: int, left: Tensor, right: Tensor) -> None:
        """Write left (m, L)^T @ right (m, d) where ``read`` reads from."""
        if self._tokens is None and grad.dtype == left.dtype:
            transposed_product(left, right, out=grad[group])
            return
        block = left.T @ right
        if self._tokens is None:
            grad[group].copy_(block)
        else:
            tokens, block = self._real(group, block)
            grad.index_copy_(0, tokens, block.to(grad.dtype))

    def add_products(self, grad: Tensor, groups: Tensor, left: Tensor, right: Tensor) -> None:
        """Add outer products of left (p, L) and right (p, d) where ``read_each`` reads; groups may repeat."""
        blocks = (left.unsqueeze(2) * right.unsqueeze(1)).to(grad.dtype)
        if self._tokens is None:
            grad.index_add_(0, groups, blocks)
        else:
            real = self._is_token.index_select(0, groups)
            grad.index_add_(0, self._tokens.index_select(0, groups)[real], blocks[real])

    def zero(self, grad: Tensor, group: int) -> None:
        """Write zeros."""
        if self._tokens is None:
            grad[group].zero_()
        else:
            grad.index_fill_(0, self._own[self._starts[group] : self._starts[group + 1]], 0.0)

    def _real(self, group: int, block: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of a group (n,), and their rows of a block (L, d) -> (n, d)."""
        begin, end = self._starts[group], self._starts[group + 1]
        if end - begin < self.length:
            block = block.index_select(0, self._places[begin:end])
        return self._own[begin:end], block


def grouped_linear(x: Tensor, weight: Tensor, layout: Layout, pairs: Pairs) -> Tensor:
    """Logits of every pair's row against the rows of its group, in the order of ``pairs``.

    Cost: R L d multiply-adds, forward; twice that and one pass over the weight's size, backward. In the
    type of x (or autocast's), whatever the weight's. Not differentiable twice.

    Shape: x (N, d), R pairs -> (R, L).
    """
    kind = x.device.type
    if torch.is_autocast_enabled(kind) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(kind))
    # Autocast would know some of the products below and not others.
    with torch.autocast(kind, enabled=False):
        work = split(pairs.runs, layout.length * x.shape[-1], x, weight)
        logits: Tensor = _GroupedLinear.apply(x, weight, pairs.rows, pairs.groups, work, layout)
    return logits


class _GroupedLinear(torch.autograd.Function):
    # In both directions rows are gathered group by group: sorted copies of x and of its gradient would be
    # most of the memory beside the gradients.

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, rows: Tensor, groups: Tensor, work: Split, layout: Layout
    ) -> Tensor:
        layout.to(x.device)
        logits = x.new_empty(len(rows), layout.length)
        light, heavy = work
        for part in light:
            members = x.index_select(0, rows[part])
            own = layout.read_each(weight, groups[part], x.dtype)
            logits.index_copy_(0, part, torch.bmm(own, members.unsqueeze(-1)).squeeze(-1))
        for group, begin, end in heavy:
            members = x.index_select(0, rows[begin:end])
            product_with_rows(members, layout.read(weight, group, x.dtype), out=logits[begin:end])
        return logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, rows, groups, ctx.work, ctx.layout = inputs
        ctx.save_for_backward(x, weight, rows, groups)

    @staticmethod
    def backward(ctx: Any, d_logits: Tensor) -> tuple[Tensor | None, ...]:
        need_x, need_weight = ctx.needs_input_grad[:2]
        work = partial(_gradients, ctx.work, ctx.layout, need_x, need_weight)
        return *once(work, d_logits, *ctx.saved_tensors), None, None, None, None


def _gradients(
    work: Split,
    layout: Layout,
    need_x: bool,
    need_weight: bool,
    d_logits: Tensor,
    x: Tensor,
    weight: Tensor,
    rows: Tensor,
    groups: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the weight."""
    d_x = torch.zeros_like(x) if need_x else None
    d_weight = _empty_like(weight) if need_weight else None
    light, heavy = work
    if d_weight is not None:
        _zero_others(d_weight, layout, heavy)
    for part in light:
        d, own, of = d_logits.index_select(0, part), rows[part], groups[part]
        if d_weight is not None:
            layout.add_products(d_weight, of, d, x.index_select(0, own))
        if d_x is not None:
            rows_of = layout.read_each(weight, of, x.dtype)
            d_x.index_add_(0, own, torch.bmm(d.unsqueeze(1), rows_of).squeeze(1))
    for group, begin, end in heavy:
        d, own = d_logits[begin:end], rows[begin:end]
        if d_weight is not None:
            layout.write_product(d_weight, group, d, x.index_select(0, own))
        if d_x is not None:
            d_x.index_add_(0, own, product(d, layout.read(weight, group, x.dtype)))
    return d_x, d_weight


def _zero_others(grad: Tensor, layout: Layout, runs: Runs) -> None:
    """Write zeros, at least where no run will write: the memory is fresh."""
    if 2 * len(runs) < layout.groups:
        grad.zero_()
        return
    written = {group for group, _, _ in runs}
    for group in range(layout.groups):
        if group not in written:
            layout.zero(grad, group)


def product_with_rows(x: Tensor, rows: Tensor, out: Tensor) -> None:
    """x @ rows^T. Shape: (m, d), (L, d), written to (m, L)."""
    parts = _parts(x, len(rows), 8)
    if parts == 1:
        torch.mm(x, rows.T, out=out)
    else:
        out.copy_(torch.bmm(rows.unflatten(0, (parts, -1)), x.T.expand(parts, -1, -1)).flatten(0, 1).T)


def product(x: Tensor, rows: Tensor) -> Tensor:
    """x @ rows. Shape: (m, L), (L, d) -> (m, d)."""
    parts = _parts(x, len(rows), 8)
    if parts == 1:
        return x @ rows
    return torch.bmm(x.unflatten(1, (parts, -1)).transpose(0, 1), rows.unflatten(0, (parts, -1))).sum(dim=0)


def transposed_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left^T @ right. Shape: (m, L), (m, d), written to (L, d)."""
    parts = _parts(left, len(out), 64)
    if parts == 1:
        torch.mm(left.T, right, out=out)
    elif len(left) == 1:
        torch.mul(left.T, right, out=out)
    else:
        left = left.T.unflatten(0, (parts, -1))
        torch.bmm(left, right.expand(parts, -1, -1), out=out.unflatten(0, (parts, -1)))


def _parts(few: Tensor, length: int, most: int) -> int:
    """In how many parts to take a product of few rows with many, 1: whole.

    With few tokens for each of many groups, all time goes into reading and writing the table once. On the
    CPU a batch of products does that up to three times as fast as one product.
    """
    if few.device.type != "cpu" or len(few) > _FEW or few.dtype not in (torch.float32, torch.float64):
        return 1
    most = min(most, length // 8)
    return next((parts for parts in range(most, 1, -1) if length % parts == 0), 1)


def _empty_like(weight: Tensor) -> Tensor:
    """Memory for a gradient.

    A large one on the CPU comes from numpy, in huge pages: touching fresh memory the first time, 4 KiB by
    4 KiB, takes several times as long as filling it.
    """
    size = weight.numel() * weight.element_size()
    if weight.device.type != "cpu" or size < _HUGE or not weight.is_contiguous():
        return torch.empty_like(weight)
    buffer = np.empty(size + 64, dtype=np.uint8)
    start = -buffer.ctypes.data % 64
    return torch.from_numpy(buffer[start : start + size]).view(weight.dtype).view(weight.shape)
