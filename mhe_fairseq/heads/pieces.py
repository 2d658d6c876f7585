"""A softmax's loss with a few rows of its logits held at a time, made again in the backward pass.

``torch.utils.checkpoint`` does the same, but ``torch.func`` refuses the hooks that it needs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads.once import once

#: Features (n, d), weight (V, d), target (n,) -> (n,).
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


def loss_in_pieces(loss: Loss, size: int, x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """``loss`` of ``size`` rows at a time. Not differentiable twice. Shape: (N, d), (V, d), (N,) -> (N,)."""
    kind = x.device.type
    # As it is now; the backward pass runs without. What it casts is not kept: in the forward pass no graph is
    # made, and who reads the weight after it would get a copy without one.
    cast = partial(
        torch.autocast,
        kind,
        torch.get_autocast_dtype(kind),
        enabled=torch.is_autocast_enabled(kind),
        cache_enabled=False,
    )

    def run(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        with cast():
            return loss(x, weight, target)

    result: Tensor = _Pieces.apply(x, weight, target, run, size)
    return result


class _Pieces(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, weight: Tensor, target: Tensor, loss: Loss, size: int) -> Tensor:
        pieces = zip(x.split(size), target.split(size), strict=True)
        return torch.cat([loss(rows, weight, gold) for rows, gold in pieces])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, target, ctx.loss, ctx.size = inputs
        ctx.save_for_backward(x, weight, target)

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        work = partial(_gradients, ctx.loss, ctx.size, *ctx.needs_input_grad[:2])
        return *once(work, d_loss, *ctx.saved_tensors), None, None, None


def _gradients(
    loss: Loss,
    size: int,
    need_x: bool,
    need_weight: bool,
    d_loss: Tensor,
    x: Tensor,
    weight: Tensor,
    target: Tensor,
) -> tuple[Tensor | None, Tensor | None]:
    """Of x and of the weight."""
    d_x = torch.empty_like(x) if need_x else None
    d_weight: Tensor | None = None
    weight = weight.detach().requires_grad_(need_weight)
    for begin in reversed(range(0, len(x), size)):
        part = slice(begin, begin + size)
        rows = x[part].detach().requires_grad_(need_x)
        with torch.enable_grad():
            value = loss(rows, weight, target[part])
        wanted = [each for each in (rows, weight) if each.requires_grad]
        grads = list(torch.autograd.grad(value, wanted, d_loss[part]))
        if need_weight:
            grad = grads.pop()
            d_weight = grad if d_weight is None else d_weight.add_(grad)
        if d_x is not None:
            d_x[part] = grads.pop()
    return d_x, d_weight
