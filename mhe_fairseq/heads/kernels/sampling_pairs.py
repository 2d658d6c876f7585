"""The loss of a sampled soft-max whose rows have groups of their own, as one autograd function.

Pairs of a row and a group are to the kernels what rows and their groups are to a cascade: they are sorted by
group, and a tile has pairs of one group. Features are copied for each pair: as much memory as the pairs'
logits, times d over the tokens of a group.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads.kernels.dispatch import on
from mhe_fairseq.heads.kernels.launch import cdiv, launch
from mhe_fairseq.heads.kernels.level import (
    LevelTables,
    Meeting,
    features_grad,
    height_of,
    score,
    table_grad,
)
from mhe_fairseq.heads.kernels.plan import Rows, Shared, plan_ranges, sort_rows
from mhe_fairseq.heads.kernels.sampling_sums import logits_kernel
from mhe_fairseq.heads.kernels.tiles import tile_of
from mhe_fairseq.heads.once import once, signed


@dataclass(frozen=True, eq=False)
class PairsSpec:
    """What stays the same from batch to batch.

    Attributes:
        level: groups of tokens, numbered without the empty ones, and places in them.
        smoothing: also the smoothing term, log Z minus the mean logit of all tokens.
        accuracy: also tell which targets beat what is scored.
        keep: gradients will be asked for.
    """

    level: LevelTables
    smoothing: bool
    accuracy: bool
    keep: bool


@dataclass(frozen=True, eq=False)
class PairsLoss:
    """Of a batch, (N,) fp32 each but for ``share``.

    Attributes:
        nll, smooth, right: as of ``sampling_loss``.
        share: (N, K): what a row's pairs have of the estimate; no gradient.
    """

    nll: Tensor
    smooth: Tensor | None
    right: Tensor | None
    share: Tensor


def pairs_loss(spec: PairsSpec, slots: Tensor, log_weight: Tensor, x: Tensor, weight: Tensor) -> PairsLoss:
    """The loss of rows with K groups each.

    Args:
        spec: see there.
        slots: (N, K) long, N > 0: a slot of each group, the first one the target's.
        log_weight: (N, K) fp32: added to the logits of a pair, -inf: it does not count.
        x: (N, d).
        weight: (V, d), of any type.
    """
    with on(x.device):
        nll, smooth, right, share, *_ = _PairsLoss.apply(
            spec, slots.contiguous(), log_weight.contiguous(), x.contiguous(), weight.contiguous()
        )
    return PairsLoss(nll, smooth if spec.smoothing else None, right if spec.accuracy else None, share)


class _PairsLoss(torch.autograd.Function):
    @staticmethod
    @signed
    def forward(
        spec: PairsSpec, slots: Tensor, log_weight: Tensor, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        level, (n, k) = spec.level, slots.shape
        pairs = torch.arange(n * k, device=x.device)
        rows = sort_rows(pairs, slots.view(-1), level.length, 1, None)
        plan = plan_ranges(rows.key, level.prefixes, 1, height_of(x, level, 0), 0, None, level.prefixes)
        source = x.repeat_interleave(k, dim=0)
        z, sums, best, _ = score(
            level, _meeting(rows, plan), source, weight, keep=spec.keep, best=spec.accuracy, by_token=True
        )
        log_sums = sums[0, : n * k].view(n, k) + log_weight
        log_z = log_sums.logsumexp(dim=1)
        gold = sums[1, : n * k].view(n, k)[:, 0]
        mean_row, smooth, right = sums[:0], sums[:0], sums[:0]
        if spec.smoothing:
            mean_row = weight.mean(dim=0, dtype=torch.float32)
            smooth = log_z - x.float() @ mean_row
        if best is not None:
            counted = best[0, : n * k].view(n, k).masked_fill(log_weight == -torch.inf, -torch.inf)
            right = gold.ge(counted.amax(dim=1)).float()
        share = (log_sums - log_z.unsqueeze(1)).exp_()
        return log_z - gold, smooth, right, share, log_z, mean_row, z, *rows, plan

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, _, log_weight, x, weight = inputs
        ctx.mark_non_differentiable(*output[2 if ctx.spec.smoothing else 1 :])
        ctx.set_materialize_grads(False)
        if ctx.spec.keep:
            ctx.save_for_backward(x, weight, log_weight, *output[4:])

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        work = partial(_gradients, ctx.spec, ctx.needs_input_grad[3:])
        return None, None, None, *once(work, d_nll, d_smooth, *ctx.saved_tensors)


def _meeting(rows: Rows, plan: Tensor) -> Meeting:
    """Every pair meets its own group."""
    return Meeting(rows, plan, None, Shared(), 1, False)


def _gradients(
    spec: PairsSpec,
    needs: Sequence[bool],
    d_nll: Tensor | None,
    d_smooth: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Of features and table; None: not needed."""
    x, weight, log_weight, log_z, mean_row, z, order, keys, key, plan = saved
    need_x, need_weight = needs
    (n, k), level, meeting = log_weight.shape, spec.level, _meeting(Rows(order, keys, key), plan)
    d_nll = torch.zeros_like(log_z) if d_nll is None else d_nll.float()
    d_log_z = d_nll if d_smooth is None else d_nll + d_smooth
    # Of a target's logit, which the first pair of a row has; the kernel adds it to what it is given beside.
    hot = torch.zeros_like(log_weight)
    hot[:, 0] = d_nll
    rest = d_log_z.unsqueeze(1) - hot
    shift = log_z.unsqueeze(1) - log_weight
    dz = torch.empty_like(z)
    tile = tile_of("logits", x.dtype, level.length)
    launch(
        logits_kernel, (cdiv(n * k, tile.constants["BM"]), 1),
        (z, keys, order, plan, None, None, shift, hot, rest, dz, n * k, 1, 1),
        tile, L=level.length, LP=level.padded, R=level.prefixes, S=0, AT=0, PARTS=0, BP=1,
    )  # fmt: skip
    d_x = d_weight = None
    if need_x:
        each = torch.empty(n * k, x.size(1), dtype=x.dtype, device=x.device)
        features_grad(level, meeting, weight, dz, each, add=False)
        total = each.view(n, k, -1).sum(dim=1, dtype=torch.float32)
        if d_smooth is not None:
            total -= torch.outer(d_smooth.float(), mean_row)
        d_x = total.to(x.dtype)
    if need_weight:
        every_row = None
        if d_smooth is not None:
            every_row = (d_smooth.float() @ x.float()) * (-1.0 / len(weight))
        d_weight = table_grad(level, meeting, x.repeat_interleave(k, dim=0), weight, dz, every_row)
    return d_x, d_weight
