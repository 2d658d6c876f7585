"""The loss of a sampled soft-max as one autograd function; with all groups drawn it is the exact soft-max."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads.kernels.dispatch import on
from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2
from mhe_fairseq.heads.kernels.level import LevelTables, Meeting, features_grad, height_of, score, table_grad
from mhe_fairseq.heads.kernels.plan import Draw, Rows, padded_rows, plan_ranges, sort_rows
from mhe_fairseq.heads.kernels.sampling_sums import combine_kernel, logits_kernel
from mhe_fairseq.heads.kernels.tiles import tile_of
from mhe_fairseq.heads.once import once, signed


@dataclass(frozen=True, eq=False)
class SamplingSpec:
    """What stays the same from batch to batch.

    Attributes:
        level: groups of tokens, numbered without the empty ones, and places in them.
        slots: (V,) long: group of a token times the level's length, plus its place in the group.
        log_weight: (groups,) fp32: added to the logits of a group that was drawn.
        is_exact: every group is drawn for all rows, and the target is right where it is the argmax.
        smoothing: also the smoothing term, log Z minus the mean logit of all tokens.
        accuracy: also tell which targets beat what is scored.
        keep: gradients will be asked for.
    """

    level: LevelTables
    slots: Tensor
    log_weight: Tensor
    is_exact: bool
    smoothing: bool
    accuracy: bool
    keep: bool

    def meeting(self, rows: Rows, plan: Tensor, draw: Draw) -> Meeting:
        return Meeting(rows, plan, draw, draw.levels[0], 1, False)


def sampling_loss(
    spec: SamplingSpec, draw: Draw, target: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """nll, smoothing term, and whether the target is best, (N,) fp32 each.

    Args:
        spec: see there.
        draw: groups to score rows on beside their own, for parts of rows that follow one another.
        target: (N,) long, N > 0.
        x: (N, d).
        weight: (V, d), of any type.
    """
    with on(x.device):
        nll, smooth, right, *_ = _SamplingLoss.apply(
            spec, draw, target.contiguous(), x.contiguous(), weight.contiguous()
        )
    return nll, smooth if spec.smoothing else None, right if spec.accuracy else None


class _SamplingLoss(torch.autograd.Function):
    @staticmethod
    @signed
    def forward(
        spec: SamplingSpec, draw: Draw, target: Tensor, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        n, level = len(x), spec.level
        rows = sort_rows(target, spec.slots, level.length, 1, None)
        height = height_of(x, level, draw.levels[0].size)
        plan = plan_ranges(rows.key, level.prefixes, 1, height, draw.parts, None, level.prefixes)
        meeting = spec.meeting(rows, plan, draw)
        z, sums, best, best_at = score(
            level, meeting, x, weight, keep=spec.keep, best=spec.accuracy, by_token=True
        )
        mean_row, mean = sums[:0], None
        if spec.smoothing:
            mean_row = weight.mean(dim=0, dtype=torch.float32)
            mean = x.float() @ mean_row
        nll = sums.new_empty(n)
        smooth = torch.empty_like(nll) if spec.smoothing else nll[:0]
        right = torch.empty_like(nll) if spec.accuracy else None
        log_z = torch.empty_like(nll)
        tile = tile_of("combine", x.dtype, meeting.shared.size)
        launch(
            combine_kernel, (cdiv(n, tile.constants["BM"]),),
            (
                sums, best, best_at, rows.keys, target, plan, draw.numbers, spec.log_weight, mean, log_z, nll,
                smooth, right, n, padded_rows(n),
            ),
            tile, L=level.length, R=level.prefixes, S=meeting.shared.size, AT=meeting.shared.at,
            PARTS=draw.parts, EXACT=spec.is_exact, BP=power_of_2(draw.parts),
        )  # fmt: skip
        return nll, smooth, sums[:0] if right is None else right, log_z, mean_row, z, *rows, plan

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.draw, _, x, weight = inputs
        ctx.mark_non_differentiable(*output[2 if ctx.spec.smoothing else 1 :])
        ctx.set_materialize_grads(False)
        if ctx.spec.keep:
            ctx.save_for_backward(x, weight, *output[3:])

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        work = partial(_gradients, ctx.spec, ctx.draw, ctx.needs_input_grad[3:])
        return None, None, None, *once(work, d_nll, d_smooth, *ctx.saved_tensors)


def _gradients(
    spec: SamplingSpec,
    draw: Draw,
    needs: Sequence[bool],
    d_nll: Tensor | None,
    d_smooth: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Of features and table; None: not needed."""
    x, weight, log_z, mean_row, z, order, keys, key, plan = saved
    need_x, need_weight = needs
    level, meeting = spec.level, spec.meeting(Rows(order, keys, key), plan, draw)
    d_nll = torch.zeros_like(log_z) if d_nll is None else d_nll
    dz = torch.empty_like(z)
    tile = tile_of("logits", x.dtype, level.length)
    launch(
        logits_kernel, (cdiv(len(x), tile.constants["BM"]), z.size(1)),
        (
            z, keys, order, plan, meeting.numbers, spec.log_weight, log_z, d_nll, d_smooth, dz, len(x),
            d_nll.stride(0), 0 if d_smooth is None else d_smooth.stride(0),
        ),
        tile, L=level.length, LP=level.padded, R=level.prefixes, S=meeting.shared.size,
        AT=meeting.shared.at, PARTS=meeting.parts, BP=power_of_2(meeting.parts),
    )  # fmt: skip
    d_x = d_weight = None
    if need_x:
        d_x = torch.empty_like(x)
        mean = None if d_smooth is None else (mean_row, d_smooth)
        features_grad(level, meeting, weight, dz, d_x, add=False, mean=mean)
    if need_weight:
        every_row = None
        if d_smooth is not None:
            every_row = (d_smooth @ x.float()) * (-1.0 / len(spec.slots))
        d_weight = table_grad(level, meeting, x, weight, dz, every_row)
    return d_x, d_weight
