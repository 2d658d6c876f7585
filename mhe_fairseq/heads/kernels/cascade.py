"""The loss of a cascade as one autograd function."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhe_fairseq.heads.kernels.cascade_sums import combine_kernel, logits_kernel
from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2, precision
from mhe_fairseq.heads.kernels.plan import Draw, Ranges, plan_ranges, sort_rows
from mhe_fairseq.heads.kernels.products import features_kernel, table_kernel
from mhe_fairseq.heads.kernels.scores import score_kernel
from mhe_fairseq.heads.kernels.tiles import tile_of

#: Of ``out`` of ``combine_kernel``.
GROUP_LOG_SUM = 6


class LevelTables(NamedTuple):
    """Which digits after a prefix have tokens, on the device; int32.

    Attributes:
        prefixes: P.
        length: L.
        tokens: (P * L,): the row of a (V, d) table that a slot has, -1 at holes; None: the table is (P, L, d).
        counts: (P * L,): tokens below each digit; None: all digits have as many.
        totals: (P,): what a mean over a prefix's digits is divided by; None: L.
        is_binary: a digit has one token or none.
    """

    prefixes: int
    length: int
    tokens: Tensor | None
    counts: Tensor | None
    totals: Tensor | None
    is_binary: bool

    @property
    def padded(self) -> int:
        """Stored logits of a row and prefix: a multiple of 16, so that rows begin aligned."""
        return cdiv(self.length, 16) * 16


class CascadeSpec(NamedTuple):
    """What stays the same from batch to batch.

    Attributes:
        slots: (V,) long.
        lengths: (L_1, ..., L_H), H = 2 or 3.
        group_counts: (L_1,) int32, tokens of each first digit.
        levels: H - 1.
        smoothing: 0: none, 1: on the prefixes drawn for each part of the batch, 2: on a row's own.
        accuracy: also tell which digits are right.
        keep: gradients will be asked for.
    """

    slots: Tensor
    lengths: tuple[int, ...]
    group_counts: Tensor
    levels: tuple[LevelTables, ...]
    smoothing: int
    accuracy: bool
    keep: bool

    def below(self, level: int) -> int:
        """Slots below a prefix of ``level`` + 1 digits and its next digit: 1 for the last."""
        product = 1
        for length in self.lengths[level + 2 :]:
            product *= length
        return product


class CascadeParts(NamedTuple):
    """What the loss of a batch comes to, (N,) fp32 each; of every digit, with the prefix given, where a tuple."""

    nll: Tensor
    smooth: Tensor | None
    digit_nll: tuple[Tensor, ...]
    digit_right: tuple[Tensor, ...] | None


def cascade_loss(
    spec: CascadeSpec,
    draw: Draw | None,
    target: Tensor,
    group: tuple[Tensor, Tensor, Tensor],
    inputs: list[Tensor],
    tables: list[Tensor],
) -> CascadeParts:
    """-log p(target), and the smoothing term.

    Args:
        spec: see there.
        draw: prefixes to smooth on; None where ``spec.smoothing`` is not 1.
        target: (N,) long, N > 0.
        group: features (N, d), rows (L_1, d) and bias (L_1,) of the first digit, of one type.
        inputs: what each level reads, (N, d_h); of the type of the features.
        tables: of each level, (P, L, d_h), or (V, d_h) where ``tokens`` is given; of any type.
    """
    x = group[0]
    # The same tensor has one gradient.
    own_inputs = [None if each is x else each.contiguous() for each in inputs]
    tables = [each.contiguous() for each in tables]
    nll, smooth, out, *_ = _CascadeLoss.apply(
        spec, draw, target, x.contiguous(), group[1], group[2], *own_inputs, *tables
    )
    n, digits = target.numel(), len(spec.lengths)
    return CascadeParts(
        nll,
        smooth if spec.smoothing else None,
        tuple(out[h, :n] for h in range(digits)),
        tuple(out[3 + h, :n] for h in range(digits)) if spec.accuracy else None,
    )


class _CascadeLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        spec: CascadeSpec,
        draw: Draw | None,
        target: Tensor,
        x: Tensor,
        group_rows: Tensor,
        group_bias: Tensor,
        *rest: Tensor | None,
    ) -> tuple[Tensor, ...]:
        n = len(x)
        padded = cdiv(n, 128) * 128
        inputs = [x if each is None else each for each in rest[: len(spec.levels)]]
        tables = rest[len(spec.levels) :]
        deepest = spec.levels[-1]
        below = deepest.prefixes // spec.lengths[0]
        rows = sort_rows(
            target, spec.slots, deepest.length, below, None if draw is None else draw.position
        )
        scored: list[Tensor] = []
        best: list[Tensor | None] = []
        for h, (level, source, table) in enumerate(zip(spec.levels, inputs, tables, strict=True)):
            assert table is not None
            unit = deepest.prefixes // level.prefixes
            tile = tile_of("score", x.dtype, level.prefixes)
            ranges = plan_ranges(
                rows.key, level.prefixes, unit, tile.constants["BM"], None if draw is None else draw.starts, below
            )
            shared = 0 if draw is None else draw.levels[h].count
            blocks, dim = 1 + shared, source.size(1)
            z = source.new_empty(n, blocks, level.padded) if spec.keep else source.new_empty(0)
            sums = x.new_empty((1 + (spec.smoothing > 0)) * blocks + 1, padded, dtype=torch.float32)
            peaks = places = None
            if spec.accuracy:
                peaks = torch.empty_like(sums[:blocks])
                places = torch.empty_like(peaks, dtype=torch.int32)
            own_tiles = n // tile.constants["BM"] + min(n, level.prefixes)
            part_tiles = 0 if draw is None else (n // tile.constants["BM"] + draw.parts) * shared
            launch(
                score_kernel, (own_tiles + part_tiles,),
                (
                    source, table, level.tokens, level.counts, level.totals, rows.order, rows.slot, ranges.begins,
                    ranges.ends, None if draw is None else draw.group_at, ranges.parts,
                    None if draw is None else draw.levels[h].prefixes, z, sums, peaks, places,
                    n, padded, own_tiles,
                ),
                tile, D=dim, L=level.length, LP=level.padded, DIV=spec.below(h), R=level.prefixes,
                SUB=level.prefixes // spec.lengths[0], S=shared, PARTS=0 if draw is None else draw.parts,
                ORDERED=draw is not None, NATURAL=False, TIED=level.tokens is not None,
                FULL=level.counts is None, BINARY=level.is_binary, STORE=spec.keep, MEAN=int(spec.smoothing > 0),
                BEST=spec.accuracy, BY_TOKEN=False, PRECISION=precision(x.dtype),
                BR=power_of_2(level.prefixes), BP=power_of_2(0 if draw is None else draw.parts),
            )  # fmt: skip
            scored += [z, sums, *ranges]
            best.append(places)
        zg = F.linear(x, group_rows, group_bias)
        nll = x.new_empty(n, dtype=torch.float32)
        smooth = torch.empty_like(nll) if spec.smoothing else nll.new_empty(0)
        out = nll.new_empty(7, padded)
        tile = tile_of("combine", x.dtype, spec.lengths[0])
        has_second = len(spec.levels) == 2
        launch(
            combine_kernel, (cdiv(n, tile.constants["BM"]),),
            (
                zg, spec.group_counts, rows.slot, scored[1], best[0], scored[6] if has_second else None,
                best[1] if has_second else None, nll, smooth, out, n, padded,
            ),
            tile, G=spec.lengths[0], BELOW=spec.below(-1), V=len(spec.slots),
            S=0 if draw is None else draw.levels[0].count,
            DIV_1=spec.below(0), L_1=spec.levels[0].length, DIV_2=1, L_2=deepest.length,
            SMOOTH=spec.smoothing, BEST=spec.accuracy,
        )  # fmt: skip
        return nll, smooth, out, zg, rows.order, rows.slot, *scored

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.draw, _, x, group_rows, group_bias, *rest = inputs
        ctx.has_input = [each is not None for each in rest]
        given = [each for each in rest if each is not None]
        ctx.mark_non_differentiable(*output[2:] if ctx.spec.smoothing else output[1:])
        ctx.set_materialize_grads(False)
        if ctx.spec.keep:
            ctx.save_for_backward(x, group_rows, *given, *output[2:])
        ctx.given = len(given)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        spec: CascadeSpec = ctx.spec
        draw: Draw | None = ctx.draw
        x, group_rows, *saved = ctx.saved_tensors
        given, (out, zg, order, slot, *scored) = saved[: ctx.given], saved[ctx.given :]
        count = len(spec.levels)
        left = iter(given)
        rest = [next(left) if there else None for there in ctx.has_input]
        needs = ctx.needs_input_grad[3:]
        need_x, need_rows, need_bias, need_rest = needs[0], needs[1], needs[2], needs[3:]
        d_nll = torch.zeros_like(out[0, : len(x)]) if d_nll is None else d_nll
        if spec.smoothing and d_smooth is None:
            d_smooth = torch.zeros_like(d_nll)
        n, padded = len(x), out.size(1)
        dzg = torch.empty_like(zg)
        d_x: Tensor | None = None
        grads: list[Tensor | None] = [None] * len(rest)
        for h, level in enumerate(spec.levels):
            source = rest[h]
            source = x if source is None else source
            table = rest[count + h]
            assert table is not None
            z, sums, begins, ends, parts = scored[5 * h : 5 * h + 5]
            shared = None if draw is None else draw.levels[h]
            blocks = z.size(1)
            dz = torch.empty_like(z)
            tile = tile_of("logits", x.dtype, level.length)
            is_first = h == 0
            launch(
                logits_kernel, (cdiv(n, tile.constants["BM"]), blocks + is_first),
                (
                    zg, spec.group_counts, out[GROUP_LOG_SUM], z, level.counts, level.totals, slot, order, parts,
                    None if shared is None else shared.prefixes, sums, d_nll, d_smooth, dzg, dz, n, padded,
                    d_nll.stride(0), 0 if d_smooth is None else d_smooth.stride(0),
                ),
                tile, G=spec.lengths[0], BELOW=spec.below(-1), V=len(spec.slots), L=level.length,
                LP=level.padded, DIV=spec.below(h), S=blocks - 1, PARTS=0 if draw is None else draw.parts,
                SMOOTH=spec.smoothing, BINARY=level.is_binary, BP=power_of_2(0 if draw is None else draw.parts),
            )  # fmt: skip
            if is_first and need_x:
                d_x = dzg @ group_rows
            grad: Tensor | None = None
            if rest[h] is None:
                grad = d_x
            elif need_rest[h]:
                grad = grads[h] = torch.empty_like(source)
            ranges = Ranges(begins, ends, parts)
            if grad is not None:
                _features_grad(spec, draw, h, table, dz, order, ranges, grad, add=rest[h] is None)
            if need_rest[count + h]:
                grads[count + h] = _table_grad(spec, draw, h, source, table, dz, order, ranges)
        d_rows = (dzg.T @ x) if need_rows else None
        d_bias = dzg.sum(dim=0) if need_bias else None
        return None, None, None, d_x, d_rows, d_bias, *grads


def _features_grad(
    spec: CascadeSpec,
    draw: Draw | None,
    h: int,
    table: Tensor,
    dz: Tensor,
    order: Tensor,
    ranges: Ranges,
    grad: Tensor,
    add: bool,
) -> None:
    """Write, or add to what is there, the gradient of what level ``h`` reads."""
    level = spec.levels[h]
    n, dim = grad.shape
    shared = None if draw is None else draw.levels[h]
    tile = tile_of("features", grad.dtype, level.prefixes)
    # The ranges were cut into tiles of so many rows.
    height = tile_of("score", grad.dtype, level.prefixes).constants["BM"]
    for is_own in (True, False) if shared is not None else (True,):
        tiles = n // height + (min(n, level.prefixes) if is_own or draw is None else draw.parts)
        launch(
            features_kernel, (tiles, cdiv(dim, tile.constants["BD"])),
            (
                table, level.tokens, dz, order, ranges.begins, ranges.ends,
                None if draw is None else draw.group_at, ranges.parts,
                None if shared is None else shared.prefixes, None, None, grad, n, 0,
            ),
            tile, D=dim, L=level.length, LP=level.padded, R=level.prefixes,
            SUB=level.prefixes // spec.lengths[0], S=dz.size(1) - 1, PARTS=0 if draw is None else draw.parts,
            ORDERED=draw is not None, NATURAL=False, TIED=level.tokens is not None, OWN=is_own,
            ADD=add or not is_own, PRECISION=precision(grad.dtype), BM=height, BR=power_of_2(level.prefixes),
            BP=power_of_2(0 if draw is None else draw.parts),
        )  # fmt: skip


def _table_grad(
    spec: CascadeSpec,
    draw: Draw | None,
    h: int,
    source: Tensor,
    table: Tensor,
    dz: Tensor,
    order: Tensor,
    ranges: Ranges,
) -> Tensor:
    level = spec.levels[h]
    dim = source.size(1)
    shared = None if draw is None else draw.levels[h]
    grad = torch.empty_like(table)
    tile = tile_of("table", source.dtype, level.prefixes)
    programs = level.prefixes * cdiv(level.length, tile.constants["BL"]) * cdiv(dim, tile.constants["BD"])
    launch(
        table_kernel, (programs,),
        (
            source, level.tokens, dz, order, ranges.begins, None if draw is None else draw.position, ranges.parts,
            None if shared is None else shared.sorted_prefixes, None if shared is None else shared.entries,
            None, grad,
        ),
        tile, D=dim, L=level.length, LP=level.padded, SUB=level.prefixes // spec.lengths[0],
        S=dz.size(1) - 1, ORDERED=draw is not None, NATURAL=False, TIED=level.tokens is not None,
        PRECISION=precision(source.dtype), E=1 if shared is None else shared.sorted_prefixes.numel(),
    )  # fmt: skip
    return grad
