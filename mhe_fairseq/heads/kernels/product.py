"""The loss of a product of digits, or a mixture of them, in a handful of launches: values and gradients.

The logits are made by a matrix product and stay in its type. Beside them only a few numbers a token are
kept, see ``product_sums``; the one gradient of the logits' size is written once and goes into matrix
products again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.heads.kernels import product_combine, product_sums
from mhe_fairseq.heads.kernels.dispatch import on
from mhe_fairseq.heads.kernels.launch import cdiv, launch, precision
from mhe_fairseq.heads.kernels.product_plan import Plan, combine_tile, gradients_tile, sums_tile
from mhe_fairseq.heads.once import once, signed


class Weights(NamedTuple):
    """Rows (K sum(L), d) and bias of the digits, and those of the gate, (K, d), for K > 1."""

    rows: Tensor
    bias: Tensor
    gate: Tensor | None = None
    gate_bias: Tensor | None = None


class Batch(NamedTuple):
    """Features (N, d), targets (N,), the drawn tokens (S,), and ``codebook_slots`` (V,)."""

    features: Tensor
    target: Tensor
    drawn: Tensor | None
    slots: Tensor


class Outputs(NamedTuple):
    """What the forward pass gives, and keeps for the backward pass.

    Attributes:
        nll, smooth: (N,) fp32.
        stats: (H, N) fp32: each digit's loss under its marginal.
        hits: (H, N) fp32 of 0 and 1.
        logits: (N, K sum(L)), in the features' type.
        gate: (N, K) logits.
        parts: (N, K, F) fp32.
    """

    nll: Tensor
    smooth: Tensor | None
    stats: Tensor
    hits: Tensor | None
    logits: Tensor
    gate: Tensor | None
    parts: Tensor


class Gradients(NamedTuple):
    """Of the features and weights; None where not asked for."""

    features: Tensor | None
    rows: Tensor | None
    bias: Tensor | None
    gate: Tensor | None
    gate_bias: Tensor | None


def forward_pass(
    batch: Batch, weights: Weights, plan: Plan, out: tuple[Tensor, Tensor | None, Tensor, Tensor | None, int]
) -> Outputs:
    """One batch, or some rows of one.

    Args:
        out: nll, smooth, stats and hits of all the batch's rows, and the first row of these: a multiple of
            64, so that kernels find aligned memory whatever N.
    """
    with on(batch.features.device):
        logits = F.linear(batch.features, weights.rows, weights.bias)
        gate = None if weights.gate is None else F.linear(batch.features, weights.gate, weights.gate_bias)
        n, tables = len(logits), plan.tables
        parts = logits.new_empty(n, plan.mixtures, plan.fields, dtype=torch.float32)
        nll, smooth, stats, hits, begin = out
        total = len(nll)
        nll, stats = nll[begin:], stats[:, begin:]
        smooth = None if smooth is None else smooth[begin:]
        hits = None if hits is None else hits[:, begin:]
        tile = sums_tile()
        launch(
            product_sums.digit_sums,
            (cdiv(n, tile.constants["BM"]), plan.mixtures * tables.sets),
            (
                logits, batch.target, batch.slots, tables.info, tables.members, tables.mean, parts, hits,
                n, total, plan.vocab,
            ),
            tile,
            **plan.common(), LP=tables.most, MEAN=plan.mixtures == 1 and plan.smoothing,
            HITS=hits is not None,
        )  # fmt: skip
        tile = combine_tile(plan)
        launch(
            product_combine.combine,
            (cdiv(n, tile.constants["BM"]),),
            (
                logits, parts, gate, batch.drawn, batch.slots, tables.info, tables.paths, nll, smooth, stats,
                n, total, plan.vocab,
            ),
            tile,
            **plan.of_combine(),
        )  # fmt: skip
    return Outputs(
        nll[:n],
        smooth if smooth is None else smooth[:n],
        stats[:, :n],
        None if hits is None else hits[:, :n],
        logits,
        gate,
        parts,
    )


def empty_outputs(features: Tensor, plan: Plan) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None, int]:
    """Memory for what ``forward_pass`` writes."""
    n = len(features)

    def new(*shape: int) -> Tensor:
        return features.new_empty(*shape, dtype=torch.float32)

    smooth = new(n) if plan.smoothing else None
    return new(n), smooth, new(plan.heads, n), new(plan.heads, n) if plan.hits else None, 0


def backward_pass(
    batch: Batch,
    rows: Tensor,
    gate_rows: Tensor | None,
    plan: Plan,
    kept: Sequence[Any],
    losses: tuple[Tensor | None, Tensor | None],
    needed: tuple[bool, ...],
) -> Gradients:
    """Gradients of the features and weights that are ``needed`` (in the order of ``Gradients``).

    Args:
        kept: logits, the gate's logits, parts.
        losses: gradients of nll and smooth.
    """
    logits, gate, parts = kept
    d_nll, d_smooth = losses
    tables, n, x = plan.tables, len(logits), batch.features
    # A gradient may be one number for all rows, as that of a sum is.
    d_nll, nll_stride = (tables.zero, 0) if d_nll is None else (d_nll, d_nll.stride(0))
    d_smooth, smooth_stride = (tables.zero, 0) if d_smooth is None else (d_smooth, d_smooth.stride(0))
    gated = plan.mixtures > 1
    with on(x.device):
        d_parts = parts.new_empty(n, plan.mixtures, tables.sets + 1)
        d_gate = torch.empty_like(gate) if gate is not None else None
        shares = logits.new_empty(n, plan.mixtures, plan.shares) if gated and plan.smoothing else None
        tile = combine_tile(plan)
        launch(
            product_combine.combine_backward,
            (cdiv(n, tile.constants["BM"]),),
            (
                logits, parts, gate, batch.drawn, batch.slots, tables.info, tables.paths, tables.incidence,
                d_nll, d_smooth, d_parts, d_gate, shares, n, nll_stride, smooth_stride, plan.vocab,
            ),
            tile,
            **plan.of_combine(), SP=plan.shares,
        )  # fmt: skip
        d_logits = torch.empty_like(logits)
        tile = gradients_tile()
        launch(
            product_sums.digit_gradients,
            (
                cdiv(n, tile.constants["BM"]),
                plan.mixtures * plan.heads,
                cdiv(max(tables.lengths), tile.constants["BN"]),
            ),
            (
                logits, batch.target, batch.drawn, batch.slots, tables.info, tables.members, tables.mean,
                parts, d_parts, shares, d_smooth, d_logits, n, smooth_stride, plan.vocab,
            ),
            tile,
            **plan.common(), LP=tables.most, S=plan.drawn, SP=plan.shares, GATED=gated, SMOOTH=plan.smoothing,
            PRECISION=precision(logits.dtype),
        )  # fmt: skip
        d_x = d_logits @ rows if needed[0] else None
        if d_x is not None and d_gate is not None and gate_rows is not None:
            d_x.addmm_(d_gate, gate_rows)
        return Gradients(
            d_x,
            d_logits.T @ x if needed[1] else None,
            d_logits.sum(dim=0) if needed[2] else None,
            d_gate.T @ x if d_gate is not None and needed[3] else None,
            d_gate.sum(dim=0) if d_gate is not None and needed[4] else None,
        )


class ProductLoss(torch.autograd.Function):
    """The ``Outputs`` of a batch. What the backward pass needs is among them, as ``torch.func`` wants it."""

    @staticmethod
    @signed
    def forward(
        plan: Plan,
        features: Tensor,
        rows: Tensor,
        bias: Tensor,
        gate: Tensor | None,
        gate_bias: Tensor | None,
        target: Tensor,
        drawn: Tensor | None,
        slots: Tensor,
    ) -> tuple[Tensor | None, ...]:
        batch, weights = Batch(features, target, drawn, slots), Weights(rows, bias, gate, gate_bias)
        return tuple(forward_pass(batch, weights, plan, empty_outputs(features, plan)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        ctx.plan, features, rows, _, gate, _, *rest = inputs
        outputs = Outputs(*output)
        kept = (outputs.logits, outputs.gate, outputs.parts)
        fixed = (outputs.stats, outputs.hits, *kept)
        ctx.mark_non_differentiable(*(each for each in fixed if each is not None))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, rows, gate, *rest, *kept)

    @staticmethod
    def backward(ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any) -> tuple[Any, ...]:
        work = partial(_gradients, ctx.plan, ctx.needs_input_grad[1:6])
        return None, *once(work, d_nll, d_smooth, *ctx.saved_tensors), None, None, None


def _gradients(
    plan: Plan,
    needed: tuple[bool, ...],
    d_nll: Tensor | None,
    d_smooth: Tensor | None,
    features: Tensor,
    rows: Tensor,
    gate: Tensor | None,
    target: Tensor,
    drawn: Tensor | None,
    slots: Tensor,
    *kept: Any,
) -> tuple[Tensor | None, ...]:
    """Of features, rows and bias of the digits, rows and bias of the gate."""
    batch = Batch(features, target, drawn, slots)
    return tuple(backward_pass(batch, rows, gate, plan, kept, (d_nll, d_smooth), needed))
