"""The loss of a sampled soft-max as one autograd function; with all groups drawn it is the exact soft-max."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2, precision
from mhe_fairseq.heads.kernels.plan import Shared, packed, plan_ranges, sort_rows, sorted_entries
from mhe_fairseq.heads.kernels.products import features_kernel, table_kernel
from mhe_fairseq.heads.kernels.sampling_sums import combine_kernel, logits_kernel
from mhe_fairseq.heads.kernels.scores import score_kernel
from mhe_fairseq.heads.kernels.tiles import tile_of


class SamplingTables(NamedTuple):
    """Groups of tokens, on the device.

    Attributes:
        groups: R, numbered without the empty ones.
        length: L, tokens of the largest.
        slots: (V,) long: group of a token times L, plus its place in the group.
        tokens: (R * L,) int32: the inverse, -1 where a group is shorter.
        log_weight: (R,) fp32: added to the logits of a group that was drawn.
    """

    groups: int
    length: int
    slots: Tensor
    tokens: Tensor
    log_weight: Tensor

    @property
    def padded(self) -> int:
        """Stored logits of a row and group: a multiple of 16, so that rows begin aligned."""
        return cdiv(self.length, 16) * 16


class Sample(NamedTuple):
    """Groups that parts of a batch meet, rows that follow one another.

    Attributes:
        parts: (PARTS + 1,) int32: the first row of each part, and N.
        shared: what they meet.
        weighted: ``log_weight`` counts; not where all groups are met.
    """

    parts: Tensor
    shared: Shared
    weighted: bool

    @classmethod
    def of(cls, begins: list[int], groups: list[np.ndarray], device: torch.device) -> Sample:
        """From the first row of each part, and N, and the groups of each part: one copy."""
        most = max(len(each) for each in groups)
        table = np.full((len(groups), most), -1)
        for row, each in zip(table, groups, strict=True):
            row[: len(each)] = each
        parts, *shared = packed([np.array(begins), *sorted_entries(table)], device)
        return cls(parts, Shared(*shared, most), True)

    @classmethod
    def of_all(cls, rows: int, groups: int, device: torch.device) -> Sample:
        """Every group, for all rows."""
        return cls.of([0, rows], [np.arange(groups)], device)._replace(weighted=False)


class SamplingSpec(NamedTuple):
    """What stays the same from batch to batch.

    Attributes:
        tables: see there.
        smoothing: also the smoothing term, log Z minus the mean logit of all tokens.
        accuracy: also tell which targets beat what is scored.
        keep: gradients will be asked for.
    """

    tables: SamplingTables
    smoothing: bool
    accuracy: bool
    keep: bool


def sampling_loss(
    spec: SamplingSpec, sample: Sample, target: Tensor, x: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """nll, smoothing term, and whether the target is best, (N,) fp32 each.

    Args:
        spec: see there.
        sample: groups to score rows on beside their own.
        target: (N,) long, N > 0.
        x: (N, d).
        weight: (V, d), of any type.
    """
    nll, smooth, right, *_ = _SamplingLoss.apply(spec, sample, target, x.contiguous(), weight.contiguous())
    return nll, smooth if spec.smoothing else None, right if spec.accuracy else None


class _SamplingLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        spec: SamplingSpec, sample: Sample, target: Tensor, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, ...]:
        tables, shared = spec.tables, sample.shared
        n, dim = x.shape
        padded, blocks, parts = cdiv(n, 128) * 128, 1 + shared.count, sample.parts.numel() - 1
        rows = sort_rows(target, tables.slots, tables.length, 1, None)
        tile = tile_of("score", x.dtype, tables.groups)
        ranges = plan_ranges(rows.key, tables.groups, 1, tile.constants["BM"])
        z = x.new_empty(n, blocks, tables.padded) if spec.keep else x.new_empty(0)
        sums = x.new_empty(blocks + 1, padded, dtype=torch.float32)
        peaks = places = right = None
        if spec.accuracy:
            peaks = torch.empty_like(sums[:blocks])
            places = torch.empty_like(peaks, dtype=torch.int32)
            right = sums.new_empty(n)
        own_tiles = n // tile.constants["BM"] + min(n, tables.groups)
        launch(
            score_kernel, (own_tiles + (n // tile.constants["BM"] + parts) * shared.count,),
            (
                x, weight, tables.tokens, None, None, rows.order, rows.slot, ranges.begins, ranges.ends, None,
                sample.parts, shared.prefixes, z, sums, peaks, places, n, padded, own_tiles,
            ),
            tile, D=dim, L=tables.length, LP=tables.padded, DIV=1, R=tables.groups, SUB=1, S=shared.count,
            PARTS=parts, ORDERED=False, NATURAL=True, TIED=True, FULL=True, BINARY=True, STORE=spec.keep,
            MEAN=0, BEST=spec.accuracy, BY_TOKEN=True, PRECISION=precision(x.dtype),
            BR=power_of_2(tables.groups), BP=power_of_2(parts),
        )  # fmt: skip
        mean_row, mean = sums[:0], None
        if spec.smoothing:
            mean_row = weight.mean(dim=0, dtype=torch.float32)
            mean = x.float() @ mean_row
        nll = sums.new_empty(n)
        smooth = torch.empty_like(nll) if spec.smoothing else nll[:0]
        log_z = torch.empty_like(nll)
        tile = tile_of("combine", x.dtype, shared.count)
        launch(
            combine_kernel, (cdiv(n, tile.constants["BM"]),),
            (
                sums, peaks, places, rows.slot, target, sample.parts, shared.prefixes,
                tables.log_weight if sample.weighted else torch.zeros_like(tables.log_weight), mean, log_z,
                nll, smooth, right, n, padded,
            ),
            tile, L=tables.length, S=shared.count, PARTS=parts, EXACT=not sample.weighted,
            BP=power_of_2(parts),
        )  # fmt: skip
        right = sums[:0] if right is None else right
        return nll, smooth, right, log_z, mean_row, z, rows.order, rows.slot, ranges.begins, ranges.ends

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.spec, ctx.sample, _, x, weight = inputs
        ctx.mark_non_differentiable(*output[2 if ctx.spec.smoothing else 1 :])
        ctx.set_materialize_grads(False)
        if ctx.spec.keep:
            ctx.save_for_backward(x, weight, *output[3:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        spec: SamplingSpec = ctx.spec
        tables, sample = spec.tables, ctx.sample
        shared: Shared = sample.shared
        x, weight, log_z, mean_row, z, order, slot, begins, ends = ctx.saved_tensors
        need_x, need_weight = ctx.needs_input_grad[3:]
        n, dim = x.shape
        parts = sample.parts.numel() - 1
        d_nll = torch.zeros_like(log_z) if d_nll is None else d_nll
        dz = torch.empty_like(z)
        tile = tile_of("logits", x.dtype, tables.length)
        launch(
            logits_kernel, (cdiv(n, tile.constants["BM"]), z.size(1)),
            (
                z, slot, order, sample.parts, shared.prefixes,
                tables.log_weight, log_z, d_nll, d_smooth, dz, n,
                d_nll.stride(0), 0 if d_smooth is None else d_smooth.stride(0),
            ),
            tile, L=tables.length, LP=tables.padded, S=shared.count, PARTS=parts, BP=power_of_2(parts),
        )  # fmt: skip
        d_x = torch.empty_like(x) if need_x else None
        if d_x is not None:
            tile = tile_of("features", x.dtype, tables.groups)
            # The ranges were cut into tiles of so many rows.
            height = tile_of("score", x.dtype, tables.groups).constants["BM"]
            for is_own in (True, False):
                launch(
                    features_kernel,
                    (
                        n // height + (min(n, tables.groups) if is_own else parts),
                        cdiv(dim, tile.constants["BD"]),
                    ),
                    (
                        weight, tables.tokens, dz, order, begins, ends, None, sample.parts, shared.prefixes,
                        None if d_smooth is None else mean_row, d_smooth, d_x, n,
                        0 if d_smooth is None else d_smooth.stride(0),
                    ),
                    tile, D=dim, L=tables.length, LP=tables.padded, R=tables.groups, SUB=1, S=shared.count,
                    PARTS=parts, ORDERED=False, NATURAL=True, TIED=True, OWN=is_own, ADD=not is_own,
                    PRECISION=precision(x.dtype), BM=height, BR=power_of_2(tables.groups),
                    BP=power_of_2(parts),
                )  # fmt: skip
        d_weight = None
        if need_weight:
            d_weight = torch.empty_like(weight)
            every_row = None
            if d_smooth is not None:
                every_row = (d_smooth @ x.float()) * (-1.0 / len(tables.slots))
            tile = tile_of("table", x.dtype, tables.groups)
            tiles = cdiv(tables.length, tile.constants["BL"]) * cdiv(dim, tile.constants["BD"])
            launch(
                table_kernel, (tables.groups * tiles,),
                (
                    x, tables.tokens, dz, order, begins, None, sample.parts, shared.sorted_prefixes,
                    shared.entries, every_row, d_weight,
                ),
                tile, D=dim, L=tables.length, LP=tables.padded, SUB=1, S=shared.count, ORDERED=False,
                NATURAL=True, TIED=True, PRECISION=precision(x.dtype), E=shared.sorted_prefixes.numel(),
            )  # fmt: skip
        return None, None, None, d_x, d_weight
