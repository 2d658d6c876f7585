"""Sums over sets of digits, and single logits: the values and the one gradient, against plain autograd."""

from __future__ import annotations

from collections.abc import Sequence
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.bench.memory import measure_peak
from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.product import column_sums as module
from mhe_fairseq.heads.product.column_sums import ColumnSums, DigitSet, column_sums, digit_views
from mhe_fairseq.heads.product.lattice import Lattice
from tests.heads.oracle import codebooks

#: What ``column_sums`` takes beside the logits.
Rest = tuple[Sequence[int], Sequence[DigitSet], Tensor, Tensor]


def plain(
    logits: Tensor, lengths: Sequence[int], sets: Sequence[DigitSet], own: Tensor, shared: Tensor
) -> ColumnSums:
    """``column_sums`` column by column, by autograd."""
    k = logits.size(1) // sum(lengths)
    digits, start = [], 0
    for length in lengths:
        digits.append(torch.stack([logits[:, start + i * length :][:, :length] for i in range(k)], dim=1))
        start += k * length
    sums = [
        digits[each.level][..., torch.arange(lengths[each.level]) if each.values is None else each.values]
        .logsumexp(dim=-1)
        for each in sets
    ]  # fmt: skip
    rows = torch.arange(len(logits))
    picked = [digit[rows, :, own[:, h]] for h, digit in enumerate(digits)]
    together = sum((digit[..., shared[:, h]] for h, digit in enumerate(digits)), torch.zeros(()))
    return ColumnSums(torch.stack(sums), torch.stack(picked), together.to(logits.dtype))


def case(book: Codebook, count: int, k: int, drawn: int, std: float, seed: int) -> tuple[Tensor, Rest]:
    generator = torch.Generator().manual_seed(seed)
    width = k * sum(book.lengths)
    logits = torch.randn(count, width, generator=generator, dtype=torch.float64) * std
    # With repetition: what several rows or tokens share must be added up.
    own = book.digits(torch.randint(len(book), (count,), generator=generator))
    shared = book.digits(torch.randint(len(book), (drawn,), generator=generator))
    return logits, (book.lengths, Lattice(book).sets, own, shared)


def weigh(outputs: ColumnSums, seed: int = 7) -> Tensor:
    """A scalar in which each output has its own weight."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros((), dtype=torch.float64)
    for output in outputs:
        total = total + (torch.randn(output.shape, generator=generator, dtype=torch.float64) * output).sum()
    return total


@given(
    book=codebooks(max_vocab=200, max_heads=4),
    count=st.sampled_from([0, 1, 2, 9]),
    k=st.integers(1, 4),
    drawn=st.sampled_from([0, 1, 20]),
    std=st.sampled_from([0.0, 1.0, 30.0]),
    rows=st.integers(1, 10),
    seed=st.integers(0, 99),
)
def test_values_and_gradient_are_those_of_autograd(
    book: Codebook, count: int, k: int, drawn: int, std: float, rows: int, seed: int
) -> None:
    logits, rest = case(book, count, k, drawn, std, seed)
    results = []
    for function in (column_sums, plain):
        leaf = logits.clone().requires_grad_()
        with mock.patch.object(module, "_BLOCK_CPU", rows * logits.size(1) * 8):
            outputs = function(leaf, *rest)
            weigh(outputs).backward()
        assert torch.equal(leaf, logits)
        assert leaf.grad is not None
        results.append((*outputs, leaf.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    "book",
    [
        Codebook((5,), vocab_size=3),
        Codebook((3, 4), vocab_size=10),
        Codebook((3, 4), torch.tensor([0, 2, 5, 7, 11])),
        Codebook((2, 3, 2), torch.tensor([4, 0, 11, 7, 2, 9, 1])),
    ],
    ids=repr,
)
def test_gradients_by_finite_differences(book: Codebook) -> None:
    logits, rest = case(book, 3, 2, 4, 1.0, 0)
    assert torch.autograd.gradcheck(lambda leaf: tuple(column_sums(leaf, *rest)), (logits.requires_grad_(),))


@pytest.mark.parametrize("used", [0, 1, 2])
def test_each_output_has_a_gradient_of_its_own(used: int) -> None:
    logits, rest = case(Codebook((4, 5), vocab_size=18), 3, 2, 6, 1.0, 0)
    grads = []
    for function in (column_sums, plain):
        leaf = logits.clone().requires_grad_()
        function(leaf, *rest)[used].square().sum().backward()
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_the_graph_can_be_kept_for_another_backward() -> None:
    logits, rest = case(Codebook((4, 5), vocab_size=18), 3, 2, 6, 1.0, 0)
    logits.requires_grad_()
    total = weigh(column_sums(logits, *rest))
    (first,) = torch.autograd.grad(total, logits, retain_graph=True)
    (second,) = torch.autograd.grad(total, logits)
    assert first.any() and torch.equal(first, second)


def test_a_second_derivative_is_refused() -> None:
    logits, rest = case(Codebook((4, 5)), 3, 2, 6, 1.0, 0)
    logits.requires_grad_()
    total = weigh(column_sums(logits, *rest)).square()
    (grad,) = torch.autograd.grad(total, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        grad.sum().backward()


def test_a_set_far_below_the_rest_keeps_its_digits() -> None:
    """exp(-300) is nothing in fp32: a part of a digit's values is not summed up beside the largest."""
    sets = [DigitSet(0, None), DigitSet(0, torch.tensor([0, 1])), DigitSet(0, torch.tensor([0, 3]))]
    logits = torch.tensor([[-300.0, -301.0, 300.0, -299.0]], requires_grad=True)
    none = torch.zeros(0, 1, dtype=torch.long)
    sums = column_sums(logits, (4,), sets, torch.tensor([[2]]), none).sums.flatten()
    exact = plain(logits.double(), (4,), sets, torch.tensor([[2]]), none).sums.flatten()
    torch.testing.assert_close(sums.double(), exact, atol=1e-4, rtol=0)
    sums.backward(torch.tensor([1.0, 10.0, 100.0]))
    assert logits.grad is not None
    low, high = torch.tensor(-1.0).sigmoid().item(), torch.tensor(1.0).sigmoid().item()
    expected = torch.tensor([[10 * high + 100 * low, 10 * low, 1.0, 100 * high]])
    torch.testing.assert_close(logits.grad, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_get_the_rounded_gradient(dtype: torch.dtype) -> None:
    logits, rest = case(Codebook((40, 50), vocab_size=1990), 6, 3, 20, 2.0, 0)
    half = logits.to(dtype).requires_grad_()
    exact = half.detach().double().requires_grad_()
    outputs = column_sums(half.float(), *rest)
    assert all(output.dtype == torch.float32 for output in outputs)
    weigh(outputs).backward()
    weigh(plain(exact, *rest)).backward()
    assert half.grad is not None and half.grad.dtype == dtype and exact.grad is not None
    # One rounding, of the sum: rounded pieces would be off by more.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(half.grad.double(), exact.grad, atol=1e-6, rtol=0.51 * eps)


def test_memory_is_one_gradient_beside_the_logits() -> None:
    book = Codebook((250, 260), vocab_size=250 * 260 - 30)
    logits, rest = case(book, 1024, 4, 8, 1.0, 0)
    logits = logits.float().requires_grad_()
    peak = measure_peak(lambda: weigh(column_sums(logits, *rest)), [logits])
    assert peak.gradients == logits.numel() * 4
    assert peak.extra < 0.5 * peak.gradients, "temporaries are of a few rows"


@pytest.mark.parametrize(
    ("values", "view"), [(None, True), ([2], True), ([1, 2, 3], True), ([0, 1, 4], False)], ids=repr
)
def test_a_digit_set_reads_and_adds_to_its_columns(values: list[int] | None, view: bool) -> None:
    digits = DigitSet(0, None if values is None else torch.tensor(values))
    scores = torch.arange(30.0).view(2, 3, 5)
    expected = scores[..., list(range(5)) if values is None else values]
    read = digits.read(scores)
    assert torch.equal(read, expected)
    assert (read.untyped_storage().data_ptr() == scores.untyped_storage().data_ptr()) == view
    target, part = torch.ones(2, 3, 5), torch.randn(expected.shape)
    digits.add(target, part)
    assert torch.equal(digits.read(target), 1 + part)
    assert float((target - 1).sum()) == pytest.approx(float(part.sum()), abs=1e-5), "and to no others"


def test_digit_views_are_the_components_of_every_digit() -> None:
    logits = torch.arange(2 * 14).view(2, 14)
    first, second = digit_views(logits, (3, 4))
    assert first[1].tolist() == [[14, 15, 16], [17, 18, 19]]
    assert second[0].tolist() == [[6, 7, 8, 9], [10, 11, 12, 13]]
    first[0, 0, 0] = 99
    assert logits[0, 0] == 99
