"""Grouped products and their hand-written backward, against loops under autograd in float64."""

from __future__ import annotations

from collections.abc import Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.heads import few_rows, group_blocks, grouped, light_groups
from mhe_fairseq.heads.grouped import Pairs, grouped_linear
from mhe_fairseq.heads.layout import Layout

DIM = 5


@pytest.fixture(autouse=True)
def uninitialised_memory_is_nan() -> Iterator[None]:
    """So that a part of a gradient that nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


def token_of_slot_for(groups: int, length: int, holes: int, seed: int) -> Tensor:
    """(groups * length,): tokens in random slots, -1 in ``holes`` others."""
    size = groups * length
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    tokens = torch.full((size,), -1)
    tokens[order[holes:]] = torch.arange(size - holes)
    return tokens


def gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None, "no gradient"
    return tensor.grad


def oracle(
    x: Tensor, weight: Tensor, slots: Tensor | None, shape: tuple[int, int], groups: Tensor, rows: Tensor
) -> Tensor:
    """(R, L) logits by indexing; zero where a slot has no token."""
    if slots is not None:
        table = weight[slots.clamp(min=0)] * (slots >= 0).unsqueeze(-1)
        weight = table.view(*shape, -1)
    return torch.stack([weight[g] @ x[r] for g, r in zip(groups, rows, strict=True)])


def random_case(
    groups: int, length: int, count: int, pairs: int, tied: bool, holes: int, seed: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    slots = token_of_slot_for(groups, length, min(holes, groups * length - 1), seed) if tied else None
    shape = (groups, length) if slots is None else (int((slots >= 0).sum()),)
    x = torch.randn(count, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    weight = torch.randn(*shape, DIM, generator=generator, dtype=torch.float64).requires_grad_()
    chosen = torch.randint(groups, (pairs,), generator=generator)
    rows = torch.randint(max(1, count), (pairs,), generator=generator)
    return x, weight, slots, chosen, rows


@given(
    groups=st.integers(1, 7),
    length=st.sampled_from([1, 2, 3, 5, 16, 24, 37]),
    count=st.integers(1, 9),
    pairs=st.integers(1, 30),
    tied=st.booleans(),
    holes=st.integers(0, 20),
    light=st.sampled_from([0, 50, 200, 2**14]),
    gathered=st.sampled_from([1, 100, 2**19]),
    block=st.sampled_from([0, 60, 300, 2**17]),
    seed=st.integers(0, 999),
)
def test_values_and_gradients_are_those_of_indexing(
    groups: int,
    length: int,
    count: int,
    pairs: int,
    tied: bool,
    holes: int,
    light: int,
    gathered: int,
    block: int,
    seed: int,
) -> None:
    """None, some or all of the groups done at once, in parts of one pair, of some or of all; and the others
    one by one, some or all together."""
    with (
        mock.patch.multiple(light_groups, _LIGHT=light, _GATHERED=gathered, _WORTH=1),
        mock.patch.object(group_blocks, "_BLOCK", block),
        mock.patch.object(few_rows, "_LARGE", 100),
    ):
        check_against_indexing(groups, length, count, pairs, tied, holes, seed)


def check_against_indexing(
    groups: int, length: int, count: int, pairs: int, tied: bool, holes: int, seed: int
) -> None:
    x, weight, slots, chosen, rows = random_case(groups, length, count, pairs, tied, holes, seed)
    layout, sorted_pairs = Layout(groups, length, slots), Pairs.of(chosen, rows)
    logits = sorted_pairs.restore(grouped_linear(x, weight, layout, sorted_pairs))
    expected = oracle(x, weight, slots, (groups, length), chosen, rows)
    real = (
        torch.ones(groups, length, dtype=torch.bool) if slots is None else (slots >= 0).view(groups, length)
    )
    # What a slot without a token reads is of no interest; a caller masks it.
    logits, expected = logits * real[chosen], expected * real[chosen]
    torch.testing.assert_close(logits, expected)
    expected_grads = torch.autograd.grad(expected.sin().sum(), (x, weight))
    loss = logits.sin().sum()
    for _ in range(2):  # a graph kept gives the same gradients again
        actual_grads = torch.autograd.grad(loss, (x, weight), retain_graph=True)
        for actual, expected_grad in zip(actual_grads, expected_grads, strict=True):
            torch.testing.assert_close(actual, expected_grad)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_by_finite_differences(tied: bool) -> None:
    x, weight, slots, chosen, rows = random_case(4, 3, 5, 6, tied, 0, 1)
    layout, pairs = Layout(4, 3, slots), Pairs.of(chosen, rows)
    assert torch.autograd.gradcheck(lambda a, b: grouped_linear(a, b, layout, pairs), (x, weight))


@pytest.mark.parametrize("tied", [False, True])
def test_nothing_in_gives_zero_gradients(tied: bool) -> None:
    x, weight, slots, chosen, _ = random_case(4, 3, 0, 0, tied, 2, 1)
    logits = grouped_linear(x, weight, Layout(4, 3, slots), Pairs.of(chosen))
    assert logits.shape == (0, 3)
    logits.sum().backward()
    assert gradient(x).shape == (0, DIM)
    assert not gradient(weight).any()


def test_untouched_groups_get_zeros_and_a_frozen_input_gets_nothing() -> None:
    x, weight, _, _, _ = random_case(4, 3, 2, 0, False, 0, 1)
    pairs = Pairs.of(torch.tensor([2, 2]))
    grouped_linear(x, weight, Layout(4, 3), pairs).sum().backward()
    assert gradient(weight).flatten(1).any(dim=1).tolist() == [False, False, True, False]
    x.grad = None
    frozen = weight.detach()
    grouped_linear(x, frozen, Layout(4, 3), pairs).sum().backward()
    assert torch.equal(gradient(x), frozen[2].sum(dim=0).expand(2, -1)) and frozen.grad is None
    (only,) = torch.autograd.grad(grouped_linear(x.detach(), weight, Layout(4, 3), pairs).sum(), weight)
    torch.testing.assert_close(only, gradient(weight))


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("x_type", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("weight_type", [torch.float32, torch.bfloat16, torch.float16])
def test_types_may_differ(x_type: torch.dtype, weight_type: torch.dtype, tied: bool) -> None:
    x, weight, slots, chosen, rows = random_case(6, 4, 8, 12, tied, 0, 3)
    expected = oracle(x, weight, slots, (6, 4), chosen, rows)
    expected_grads = torch.autograd.grad(expected.sum(), (x, weight))
    x, weight = x.detach().to(x_type).requires_grad_(), weight.detach().to(weight_type).requires_grad_()
    pairs = Pairs.of(chosen, rows)
    logits = pairs.restore(grouped_linear(x, weight, Layout(6, 4, slots), pairs))
    assert logits.dtype == x_type
    torch.testing.assert_close(logits.double(), expected, atol=0.1, rtol=0.05)
    logits.sum().backward()
    for tensor, grad in zip((x, weight), expected_grads, strict=True):
        assert gradient(tensor).dtype == tensor.dtype
        torch.testing.assert_close(gradient(tensor).double(), grad, atol=0.15, rtol=0.05)


@pytest.mark.parametrize("tied", [False, True])
def test_autocast_sets_the_type_of_the_products(tied: bool) -> None:
    x, weight, slots, chosen, rows = random_case(6, 4, 8, 12, tied, 0, 3)
    x, weight = x.detach().float().requires_grad_(), weight.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logits = grouped_linear(x, weight, Layout(6, 4, slots), Pairs.of(chosen, rows))
    assert logits.dtype == torch.bfloat16
    logits.sum().backward()
    assert gradient(x).dtype == gradient(weight).dtype == torch.float32


def test_pairs_are_sorted_and_restored() -> None:
    groups, rows = torch.tensor([3, 0, 3, 1, 0]), torch.tensor([7, 6, 5, 4, 3])
    pairs = Pairs.of(groups, rows)
    assert pairs.groups.tolist() == [0, 0, 1, 3, 3]
    assert pairs.rows.tolist() == [6, 3, 4, 7, 5]
    assert pairs.runs == [(0, 0, 2), (1, 2, 3), (3, 3, 5)]
    assert pairs.restore(pairs.rows).tolist() == rows.tolist()
    assert Pairs.of(groups).rows.tolist() == [1, 4, 3, 0, 2]
    assert Pairs.of(torch.zeros(0, dtype=torch.long)).runs == []


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_large_gradient_is_written_in_full(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is large enough to come from numpy, whose memory is not zero either."""
    monkeypatch.setattr(grouped, "_HUGE", 1)
    monkeypatch.setattr(grouped.np, "empty", lambda size, dtype: np.full(size, 255, dtype))
    weight = torch.randn(6, 16, DIM).to(dtype).requires_grad_()
    x = torch.randn(4, DIM).to(dtype)
    pairs = Pairs.of(torch.tensor([5, 1, 1, 3]))
    grouped_linear(x, weight, Layout(6, 16), pairs).sum().backward()
    grad = gradient(weight)
    assert grad.dtype == dtype and grad.data_ptr() % 64 == 0 and grad.is_contiguous()
    expected = torch.zeros(6, 16, DIM, dtype=torch.float64)
    for row, group in enumerate([5, 1, 1, 3]):
        expected[group] += x[row].double()
    torch.testing.assert_close(
        grad.double(), expected, atol=0.05 if dtype == torch.bfloat16 else 1e-5, rtol=0.01
    )
    before = grad.data_ptr()
    torch.autograd.backward(grouped_linear(x, weight, Layout(6, 16), pairs).sum())
    assert gradient(weight).data_ptr() == before, "a second gradient is added in place"
