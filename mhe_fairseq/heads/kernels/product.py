"""The loss of a product of digits, or a mixture of them, in a handful of launches: values and gradients.

The logits are made by a matrix product and stay in its type. Beside them only a few numbers a token are kept,
see ``digits``; the one gradient of the logits' size is written once and goes into matrix products again.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhe_fairseq.heads.kernels import digits
from mhe_fairseq.heads.kernels.dispatch import interpreting
from mhe_fairseq.heads.kernels.launch import Tile, cdiv, launch, power_of_2, precision
from mhe_fairseq.heads.kernels.product_tables import Tables

#: Drawn tokens that a program of ``combine`` has at hand at a time.
_DRAWN = 64

#: Numbers of all components and paths or drawn tokens that a program of ``combine`` has at hand, about.
_CELLS = 2048


class Plan(NamedTuple):
    """What does not change with the batch.

    Attributes:
        mixtures: K.
        vocab: V.
        drawn: S, drawn tokens of the smoothing term, for K > 1.
        smoothing: with the smoothing term.
        hits: also report which digits' best value is the target's, for K = 1.
    """

    tables: Tables
    mixtures: int
    vocab: int
    drawn: int
    smoothing: bool
    hits: bool

    @property
    def heads(self) -> int:
        """H."""
        return len(self.tables.lengths)

    @property
    def fields(self) -> int:
        """F, numbers of a token and component in ``parts``."""
        return self.tables.sets + self.heads * (2 if self.mixtures == 1 else 1)

    @property
    def shares(self) -> int:
        """SP, the padded S."""
        return max(16, power_of_2(self.drawn))

    def common(self) -> dict[str, Any]:
        """Constants of all kernels."""
        k = self.mixtures
        sizes = {"K": k, "H": self.heads, "M": self.tables.sets, "F": self.fields, "W": k * self.tables.width}
        return sizes

    def of_combine(self) -> dict[str, Any]:
        """Constants of the kernels that combine the parts."""
        return self.common() | {
            "P": self.tables.path_count,
            "S": self.drawn,
            "GATED": self.mixtures > 1,
            "FULL": self.tables.full,
            "SMOOTH": self.smoothing,
        }


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


def sums_tile() -> Tile:
    """Of ``digit_sums``: rows, columns of a step."""
    return Tile({"BM": 16, "BN": 16}) if interpreting() else Tile({"BM": 16, "BN": 128}, warps=4, stages=2)


def gradients_tile() -> Tile:
    """Of ``digit_gradients``: rows, columns."""
    return Tile({"BM": 16, "BN": 16}) if interpreting() else Tile({"BM": 32, "BN": 64}, warps=8, stages=2)


def combine_tile(plan: Plan) -> Tile:
    """Of ``combine`` and its backward: as many rows as leave a program's numbers in registers."""
    kp, pp = power_of_2(plan.mixtures), power_of_2(plan.tables.path_count)
    bs = min(_DRAWN, plan.shares) if plan.mixtures > 1 and plan.smoothing else 1
    rows = min(32, max(1, _CELLS // (kp * max(pp, bs))))
    rows = max(rows, 8) if interpreting() else rows
    small = rows * kp * max(pp, bs) <= 256
    return Tile({"BM": rows, "KP": kp, "PP": pp, "BS": bs}, warps=1 if small else 4, stages=2)


def forward_pass(
    batch: Batch, weights: Weights, plan: Plan, out: tuple[Tensor, Tensor | None, Tensor, Tensor | None, int]
) -> Outputs:
    """One batch, or some rows of one.

    Args:
        out: nll, smooth, stats and hits of all the batch's rows, and the first row of these: a multiple of 64,
            so that kernels find aligned memory whatever N.
    """
    with _on(batch.features.device):
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
            digits.digit_sums,
            (cdiv(n, tile.constants["BM"]), plan.mixtures * tables.sets),
            (logits, batch.target, batch.slots, tables.info, tables.members, tables.mean, parts, hits, n, total,
             plan.vocab),
            tile,
            **plan.common(), LP=tables.most, MEAN=plan.mixtures == 1 and plan.smoothing, HITS=hits is not None,
        )  # fmt: skip
        tile = combine_tile(plan)
        launch(
            digits.combine,
            (cdiv(n, tile.constants["BM"]),),
            (logits, parts, gate, batch.drawn, batch.slots, tables.info, tables.paths, nll, smooth, stats, n, total,
             plan.vocab),
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
    weights: Weights,
    plan: Plan,
    outputs: tuple[Tensor, Tensor | None, Tensor],
    d_nll: Tensor | None,
    d_smooth: Tensor | None,
    needed: tuple[bool, ...],
) -> Gradients:
    """Gradients of the features and weights that are ``needed`` (in the order of ``Gradients``).

    Args:
        outputs: logits, the gate's logits, parts.
    """
    logits, gate, parts = outputs
    tables, n, x = plan.tables, len(logits), batch.features
    # A gradient may be one number for all rows, as that of a sum is.
    d_nll, nll_stride = (tables.zero, 0) if d_nll is None else (d_nll, d_nll.stride(0))
    d_smooth, smooth_stride = (tables.zero, 0) if d_smooth is None else (d_smooth, d_smooth.stride(0))
    gated = plan.mixtures > 1
    with _on(x.device):
        d_parts = parts.new_empty(n, plan.mixtures, tables.sets + 1)
        d_gate = torch.empty_like(gate) if gate is not None else None
        shares = logits.new_empty(n, plan.mixtures, plan.shares) if gated and plan.smoothing else None
        tile = combine_tile(plan)
        launch(
            digits.combine_backward,
            (cdiv(n, tile.constants["BM"]),),
            (logits, parts, gate, batch.drawn, batch.slots, tables.info, tables.paths, tables.incidence, d_nll,
             d_smooth, d_parts, d_gate, shares, n, nll_stride, smooth_stride, plan.vocab),
            tile,
            **plan.of_combine(), SP=plan.shares,
        )  # fmt: skip
        d_logits = torch.empty_like(logits)
        tile = gradients_tile()
        launch(
            digits.digit_gradients,
            (cdiv(n, tile.constants["BM"]), plan.mixtures * plan.heads,
             cdiv(max(tables.lengths), tile.constants["BN"])),
            (logits, batch.target, batch.drawn, batch.slots, tables.info, tables.members, tables.mean, parts,
             d_parts, shares, d_smooth, d_logits, n, smooth_stride, plan.vocab),
            tile,
            **plan.common(), LP=tables.most, S=plan.drawn, SP=plan.shares, GATED=gated, SMOOTH=plan.smoothing,
            PRECISION=precision(logits.dtype),
        )  # fmt: skip
        d_x = d_logits @ weights.rows if needed[0] else None
        if d_x is not None and d_gate is not None and weights.gate is not None:
            d_x.addmm_(d_gate, weights.gate)
        return Gradients(
            d_x,
            d_logits.T @ x if needed[1] else None,
            d_logits.sum(dim=0) if needed[2] else None,
            d_gate.T @ x if d_gate is not None and needed[3] else None,
            d_gate.sum(dim=0) if d_gate is not None and needed[4] else None,
        )


class ProductLoss(torch.autograd.Function):
    """The rows' ``Outputs`` for a plan, and their gradients.

    Intermediate results are outputs as well: what ``setup_context`` keeps must be seen by ``torch.func``.
    """

    @staticmethod
    def forward(
        features: Tensor,
        rows: Tensor,
        bias: Tensor,
        gate: Tensor | None,
        gate_bias: Tensor | None,
        target: Tensor,
        drawn: Tensor | None,
        slots: Tensor,
        plan: Plan,
    ) -> tuple[Tensor | None, ...]:
        batch = Batch(features, target, drawn, slots)
        return tuple(
            forward_pass(batch, Weights(rows, bias, gate, gate_bias), plan, empty_outputs(features, plan))
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        features, rows, bias, gate, gate_bias, target, drawn, slots, plan = inputs
        outputs = Outputs(*output)
        kept = (outputs.logits, outputs.gate, outputs.parts)
        ctx.mark_non_differentiable(
            *(each for each in (outputs.stats, outputs.hits, *kept) if each is not None)
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(features, rows, gate, target, drawn, slots, *kept)
        ctx.plan = plan

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_nll: Tensor | None, d_smooth: Tensor | None, *_: Any
    ) -> tuple[Tensor | None, ...]:
        return (
            *_Backward.apply(d_nll, d_smooth, *ctx.saved_tensors, ctx.plan, ctx.needs_input_grad[:5]),
        ) + (None,) * 4


class _Backward(torch.autograd.Function):
    """``backward_pass``. A function of its own, because ``torch.func`` gives wrapped tensors to a backward and
    bare ones, which kernels need, to a forward."""

    @staticmethod
    def forward(
        d_nll: Tensor | None,
        d_smooth: Tensor | None,
        features: Tensor,
        rows: Tensor,
        gate: Tensor | None,
        target: Tensor,
        drawn: Tensor | None,
        slots: Tensor,
        logits: Tensor,
        gate_logits: Tensor | None,
        parts: Tensor,
        plan: Plan,
        needed: tuple[bool, ...],
    ) -> tuple[Tensor | None, ...]:
        batch, weights = Batch(features, target, drawn, slots), Weights(rows, rows, gate)
        kept = (logits, gate_logits, parts)
        return tuple(backward_pass(batch, weights, plan, kept, d_nll, d_smooth, needed))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise RuntimeError("the loss of a product of digits is not differentiable twice")


@contextmanager
def _on(device: torch.device) -> Iterator[None]:
    """Kernels go to the current device."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            yield
    else:
        yield
