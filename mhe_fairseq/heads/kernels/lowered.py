"""Kernels in backward passes inside the transforms of torch.func."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def lowered(function: Callable[..., tuple[Any, ...]], *inputs: Any) -> tuple[Any, ...]:
    """``function(*inputs)``, with tensors that have memory for a kernel to read.

    The forward pass of an autograd function has such tensors, and its backward pass has, too, except inside
    torch.func.grad and the like: there it gets wrappers, and only another autograd function unwraps them.
    """
    tensors = (each for each in inputs if isinstance(each, Tensor))
    if not any(torch._C._functorch.is_functorch_wrapped_tensor(each) for each in tensors):
        return function(*inputs)
    results: tuple[Any, ...] = _Lowered.apply(function, *inputs)
    return results


class _Lowered(torch.autograd.Function):
    @staticmethod
    def forward(function: Callable[..., tuple[Any, ...]], *inputs: Any) -> tuple[Any, ...]:
        return function(*inputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[Any, ...]:
        raise RuntimeError("the loss of a head can be differentiated once, not twice")
