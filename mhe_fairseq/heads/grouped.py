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
from mhe_fairseq.heads.few_rows import product, product_with_rows
from mhe_fairseq.heads.group_blocks import Block, blocks_of
from mhe_fairseq.heads.layout import Layout
from mhe_fairseq.heads.light_groups import Runs, split
from mhe_fairseq.heads.once import once

#: Bytes from which on a gradient on the CPU lies in huge pages.
_HUGE = 2**28

#: Parts of the pairs whose groups are light, and the blocks of the others.
Work = tuple[list[Tensor], list[Block]]


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
        light, heavy = split(pairs.runs, layout.length * x.shape[-1], x, weight)
        work = light, blocks_of(heavy, x, 0 if layout.is_in_place else layout.length)
        logits: Tensor = _GroupedLinear.apply(x, weight, pairs.rows, pairs.groups, work, layout)
    return logits


class _GroupedLinear(torch.autograd.Function):
    # In both directions rows are gathered block by block: sorted copies of x and of its gradient would be
    # most of the memory beside the gradients.

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, rows: Tensor, groups: Tensor, work: Work, layout: Layout
    ) -> Tensor:
        layout.to(x.device)
        logits = x.new_empty(len(rows), layout.length)
        light, blocks = work
        for part in light:
            members = x.index_select(0, rows[part])
            own = layout.read_each(weight, groups[part], x.dtype)
            logits.index_copy_(0, part, torch.bmm(own, members.unsqueeze(-1)).squeeze(-1))
        for block in blocks:
            members = x.index_select(0, rows[block.pairs]).split(block.counts)
            tables = layout.read(weight, block.groups, x.dtype)
            outs = logits[block.pairs].split(block.counts)
            for own, table, out in zip(members, tables, outs, strict=True):
                product_with_rows(own, table, out, not layout.is_in_place)
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
    work: Work,
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
    light, blocks = work
    if d_weight is not None:
        _zero_others(d_weight, layout, {group for block in blocks for group in block.groups})
    for part in light:
        d, own, of = d_logits.index_select(0, part), rows[part], groups[part]
        if d_weight is not None:
            layout.add_products(d_weight, of, d, x.index_select(0, own))
        if d_x is not None:
            rows_of = layout.read_each(weight, of, x.dtype)
            d_x.index_add_(0, own, torch.bmm(d.unsqueeze(1), rows_of).squeeze(1))
    for block in blocks:
        own, d = rows[block.pairs], d_logits[block.pairs]
        members = x.index_select(0, own)
        if d_weight is not None:
            layout.write_products(d_weight, block, d, members)
        if d_x is not None:
            # The features make way for their gradients.
            tables = layout.read(weight, block.groups, x.dtype)
            parts = zip(d.split(block.counts), tables, members.split(block.counts), strict=True)
            for each, table, out in parts:
                product(each, table, out, not layout.is_in_place)
            d_x.index_add_(0, own, members)
    return d_x, d_weight


def _zero_others(grad: Tensor, layout: Layout, written: set[int]) -> None:
    """Write zeros, at least to groups that will not be written: the memory is fresh."""
    if 2 * len(written) < layout.groups:
        grad.zero_()
        return
    for group in range(layout.groups):
        if group not in written:
            layout.zero(grad, group)


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
