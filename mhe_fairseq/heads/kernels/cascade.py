"""The loss of a cascade as one autograd function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.heads.kernels.cascade_sums import combine_kernel, logits_kernel
from mhe_fairseq.heads.kernels.dispatch import on
from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2
from mhe_fairseq.heads.kernels.level import LevelTables, Meeting, features_grad, height_of, score, table_grad
from mhe_fairseq.heads.kernels.plan import Draw, Rows, Shared, padded_rows, plan_ranges, sort_rows
from mhe_fairseq.heads.kernels.tiles import tile_of
from mhe_fairseq.heads.once import once, signed

#: Which line of what ``combine_kernel`` writes.
_RIGHT, _GROUP_LOG_SUM = 3, 6


@dataclass(frozen=True, eq=False)
class CascadeSpec:
    """What stays the same from batch to batch.

    Attributes:
        slots: (V,) long.
        lengths: (L_1, ..., L_H), H = 2 or 3.
        prototypes: m, rows of each value of the first digit, whose exponentials are added.
        group_counts: (L_1,) int32, tokens of each first digit.
        levels: H - 1.
        smoothing: 0: none, 1: on the prefixes drawn for each part of the batch, 2: on a row's own.
        accuracy: also tell which digits are right.
        keep: gradients will be asked for.
    """

    slots: Tensor
    lengths: tuple[int, ...]
    prototypes: int
    group_counts: Tensor
    levels: tuple[LevelTables, ...]
    smoothing: int
    accuracy: bool
    keep: bool

    def divisor(self, digit: int) -> int:
        """Slots below a value of a digit."""
        return math.prod(self.lengths[digit + 1 :])

    def meeting(self, h: int, rows: Rows, plan: Tensor, draw: Draw | None) -> Meeting:
        """Of level ``h``."""
        shared = Shared() if draw is None else draw.levels[h]
        return Meeting(rows, plan, draw, shared, self.levels[h].prefixes // self.lengths[0], True)


class CascadeParts(NamedTuple):
    """What the loss of a batch comes to, (N,) fp32 each; tuples: of every digit, given those before it."""

    nll: Tensor
    smooth: Tensor | None
    digit_nll: tuple[Tensor, ...]
    digit_right: tuple[Tensor, ...] | None


def cascade_loss(
    spec: CascadeSpec,
    draw: Draw | None,
    target: Tensor,
    group: tuple[Tensor, Tensor, Tensor],
    inputs: Sequence[Tensor],
    tables: Sequence[Tensor],
) -> CascadeParts:
    """-log p(target), and the smoothing term.

    Args:
        spec: see there.
        draw: prefixes to smooth on; None where ``spec.smoothing`` is not 1.
        target: (N,) long, N > 0.
        group: features (N, d), rows (L_1 m, d) and bias (L_1 m,) of the first digit, of one type.
        inputs: what each level reads, (N, d_h); of the type of the features.
        tables: of each level, (P, L, d_h), or (V, d_h) where ``tokens`` is given; of any type.
    """
    x = group[0]
    # The same tensor has one gradient.
    own_inputs = [None if each is x else each.contiguous() for each in inputs]
    tables = [each.contiguous() for each in tables]
    with on(x.device):
        nll, smooth, out, *_ = _CascadeLoss.apply(
            spec, draw, target.contiguous(), x.contiguous(), group[1], group[2], *own_inputs, *tables
        )
    n, digits = target.numel(), len(spec.lengths)
    return CascadeParts(
        nll,
        smooth if spec.smoothing else None,
        tuple(out[h, :n] for h in range(digits)),
        tuple(out[_RIGHT + h, :n] for h in range(digits)) if spec.accuracy else None,
    )


class _CascadeLoss(torch.autograd.Function):
    @staticmethod
    @signed
    def forward(
        spec: CascadeSpec,
        draw: Draw | None,
        target: Tensor,
        x: Tensor,
        group_rows: Tensor,
        group_bias: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:
        n, groups, count = len(x), spec.lengths[0], len(spec.levels)
        numbers = None if draw is None else draw.numbers
        parts = 0 if draw is None else draw.parts
        deepest = spec.levels[-1]
        rows = sort_rows(target, spec.slots, deepest.length, deepest.prefixes // groups, numbers)
        scored = []
        for h, level in enumerate(spec.levels):
            source, table = rest[h], rest[count + h]
            assert table is not None
            source = x if source is None else source
            unit = deepest.prefixes // level.prefixes
            height = height_of(source, level, 0 if draw is None else draw.levels[h].size)
            plan = plan_ranges(rows.key, level.prefixes, unit, height, parts, numbers, groups)
            scores = score(
                level, spec.meeting(h, rows, plan, draw), source, table, divisor=spec.divisor(h + 1),
                keep=spec.keep, mean=spec.smoothing > 0, best=spec.accuracy,
            )  # fmt: skip
            scored.append((scores, plan))
        zg = F.linear(x, group_rows, group_bias)
        nll = x.new_empty(n, dtype=torch.float32)
        smooth = torch.empty_like(nll) if spec.smoothing else nll.new_empty(0)
        out = nll.new_empty(_GROUP_LOG_SUM + 1, padded_rows(n))
        tile = tile_of("combine", x.dtype, groups)
        first, second = scored[0][0], scored[1][0] if count == 2 else None
        launch(
            combine_kernel, (cdiv(n, tile.constants["BM"]),),
            (
                zg, spec.group_counts, rows.keys, first.sums, first.best_at,
                None if second is None else second.sums, None if second is None else second.best_at,
                nll, smooth, out, n, padded_rows(n),
            ),
            tile, G=groups, M=spec.prototypes, BELOW=spec.divisor(0), V=len(spec.slots),
            S=0 if draw is None else draw.levels[0].size, DIV_1=spec.divisor(1), L_1=spec.levels[0].length,
            DIV_2=1, L_2=deepest.length, SMOOTH=spec.smoothing, BEST=spec.accuracy,
        )  # fmt: skip
        kept = [each for scores, plan in scored for each in (scores.z, scores.sums, plan)]
        return nll, smooth, out, zg, *rows, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.draw, _, x, group_rows, _, *rest = inputs
        ctx.is_given = [each is not None for each in rest]
        given = [each for each in rest if each is not None]
        ctx.mark_non_differentiable(*output[2 if ctx.spec.smoothing else 1 :])
        ctx.set_materialize_grads(False)
        if ctx.spec.keep:
            ctx.save_for_backward(x, group_rows, *given, *output[2:])

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        work = partial(_gradients, ctx.spec, ctx.draw, ctx.is_given, ctx.needs_input_grad[3:])
        return None, None, None, *once(work, d_nll, d_smooth, *ctx.saved_tensors)


def _gradients(
    spec: CascadeSpec,
    draw: Draw | None,
    is_given: Sequence[bool],
    needs: Sequence[bool],
    d_nll: Tensor | None,
    d_smooth: Tensor | None,
    *saved: Tensor,
) -> tuple[Tensor | None, ...]:
    """Of features, rows and bias of the first digit, inputs and tables of the levels; None: not needed."""
    x, group_rows = saved[:2]
    given, (out, zg, order, keys, key, *scored) = iter(saved[2:]), saved[2 + sum(is_given) :]
    rest = [next(given) if there else None for there in is_given]
    need_x, need_rows, need_bias, *need_rest = needs
    n, count = len(x), len(spec.levels)
    d_nll = torch.zeros_like(out[0, :n]) if d_nll is None else d_nll
    if spec.smoothing and d_smooth is None:
        d_smooth = torch.zeros_like(d_nll)
    dzg = torch.empty_like(zg)
    d_x: Tensor | None = None
    grads: list[Tensor | None] = [None] * len(rest)
    for h, level in enumerate(spec.levels):
        source, table = rest[h], rest[count + h]
        assert table is not None
        z, sums, plan = scored[3 * h : 3 * h + 3]
        meeting = spec.meeting(h, Rows(order, keys, key), plan, draw)
        dz = torch.empty_like(z)
        tile = tile_of("logits", x.dtype, level.length)
        launch(
            logits_kernel, (cdiv(n, tile.constants["BM"]), z.size(1) + (h == 0)),
            (
                zg, spec.group_counts, out[_GROUP_LOG_SUM], z, level.counts, level.totals, keys, order, plan,
                meeting.numbers, sums, d_nll, d_smooth, dzg, dz, n, padded_rows(n), d_nll.stride(0),
                0 if d_smooth is None else d_smooth.stride(0),
            ),
            tile, G=spec.lengths[0], M=spec.prototypes, BELOW=spec.divisor(0), V=len(spec.slots),
            L=level.length, LP=level.padded, DIV=spec.divisor(h + 1), R=level.prefixes, S=meeting.shared.size,
            AT=meeting.shared.at, PARTS=meeting.parts, SMOOTH=spec.smoothing, BINARY=level.is_binary,
            BP=power_of_2(meeting.parts),
        )  # fmt: skip
        if h == 0 and need_x:
            d_x = dzg @ group_rows
        if source is not None and need_rest[h]:
            grads[h] = torch.empty_like(source)
        into = d_x if source is None else grads[h]
        if into is not None:
            features_grad(level, meeting, table, dz, into, add=source is None)
        if need_rest[count + h]:
            source = x if source is None else source
            grads[count + h] = table_grad(level, meeting, source, table, dz)
    d_rows = dzg.T @ x if need_rows else None
    d_bias = dzg.sum(dim=0) if need_bias else None
    return d_x, d_rows, d_bias, *grads
