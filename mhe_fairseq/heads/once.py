"""Gradients written by hand: usable under ``torch.func``, and refused where they would be differentiated."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def once(work: Callable[..., Any], *tensors: Tensor | None) -> Any:
    """``work(*tensors)``, a tensor or a tuple of tensors and None, that cannot be differentiated.

    For the backward pass of an ``autograd.Function``. Where a graph is made of that pass (``create_graph``,
    and always under ``torch.func``) the result hangs on all ``tensors``, and to differentiate it raises an
    error. ``once_differentiable`` would say nothing where only what was saved, not the gradient that comes
    in, has a graph.

    ``work`` gets plain tensors, not those of ``torch.func``'s levels, and may write to new ones as it likes.
    So it must read no tensor but ``tensors``, and those that no transformation can have made.
    """
    if not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active():
        return work(*tensors)  # the pass of a training: nobody makes a graph of it
    return _Once.apply(work, *tensors)


def signed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Keeps the signature of an ``autograd.Function``'s ``forward``, which torch works out anew in every call
    of one with a ``setup_context``: as long as a kernel's launch takes."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(work: Callable[..., Any], *tensors: Tensor | None) -> Any:
        return work(*tensors)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        raise RuntimeError(
            "the gradient of an mhe head cannot be differentiated twice: it is written by hand, once"
        )
