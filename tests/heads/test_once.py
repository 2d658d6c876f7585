"""What is written by hand is not differentiated again, and runs on plain tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mhe_fairseq.heads.grouped import Pairs, grouped_linear
from mhe_fairseq.heads.layout import Layout
from mhe_fairseq.heads.once import once


class Square(torch.autograd.Function):
    @staticmethod
    def forward(x: Tensor, unused: Tensor) -> Tensor:
        return x.square()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return once(_slope, grad, *ctx.saved_tensors)


def _slope(grad: Tensor, x: Tensor) -> tuple[Tensor, None]:
    # No transformation's tensor has memory that could be asked for, or be written into a plain one.
    assert grad.numpy().shape == x.numpy().shape
    made = torch.from_numpy(np.empty(x.shape, dtype=x.numpy().dtype))
    return torch.mul(2 * x, grad, out=made), None


def test_it_runs_on_plain_tensors_under_transformations() -> None:
    x, unused = torch.tensor([1.0, -3.0]), torch.zeros(2)

    def total(x: Tensor, unused: Tensor) -> Tensor:
        return (Square.apply(x, unused) * torch.tensor([1.0, 10.0])).sum()

    expected = torch.tensor([2.0, -60.0])
    of_x, of_unused = torch.func.grad(total, (0, 1))(x, unused)
    assert torch.equal(of_x, expected) and not of_unused.any()
    # Its levels are gone when it is called.
    pull = torch.func.vjp(total, x, unused)[1]
    assert torch.equal(pull(torch.ones(()))[0], expected) and torch.equal(pull(torch.ones(()))[0], expected)
    leaf = x.clone().requires_grad_()
    total(leaf, unused).backward()
    assert leaf.grad is not None and torch.equal(leaf.grad, expected) and leaf.grad.is_leaf


def test_it_is_not_differentiated() -> None:
    x = torch.tensor([1.0, -3.0], requires_grad=True)
    (grad,) = torch.autograd.grad(Square.apply(x, torch.zeros(2)).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_a_constant_gradient_that_comes_in_does_not_hide_it() -> None:
    """The gradient of x is the weight, which is a leaf: its own derivative is not nothing."""
    x, weight = torch.randn(3, 4, requires_grad=True), torch.randn(2, 5, 4, requires_grad=True)
    logits = grouped_linear(x, weight, Layout(2, 5), Pairs.of(torch.tensor([0, 1, 1])))
    (grad,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        (x.sum() + grad.sum()).backward()
