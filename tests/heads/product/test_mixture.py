"""Mixtures of products: exact top-k and sums, also where the linear domain has no numbers left."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.product import mixture
from mhe_fairseq.heads.product.lattice import Lattice
from mhe_fairseq.heads.product.mixture import MixtureScores, _log_matmul

VOCAB = 2000
BOOKS = {
    "2 digits, full": Codebook((40, 50)),
    "2 digits, holes at the end": Codebook((41, 53), vocab_size=VOCAB),
    "2 digits, holes anywhere": Codebook(
        (45, 47), torch.randperm(45 * 47, generator=torch.Generator().manual_seed(0))[:VOCAB]
    ),
    "2 digits, empty rows": Codebook((60, 40), vocab_size=VOCAB),
    "3 digits, full": Codebook((10, 10, 20)),
    "3 digits, holes at the end": Codebook((12, 13, 14), vocab_size=VOCAB),
    "3 digits, holes anywhere": Codebook(
        (12, 13, 14), torch.randperm(12 * 13 * 14, generator=torch.Generator().manual_seed(1))[:VOCAB]
    ),
}
#: Flat, ordinary, peaked, and so extreme that products of probabilities leave the range of fp32.
STDS = [0.0, 0.01, 1.0, 6.0, 40.0]
every_book = pytest.mark.parametrize("name", BOOKS)
every_std = pytest.mark.parametrize("std", STDS)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def scores_for(
    book: Codebook, std: float, dtype: torch.dtype, count: int = 6, mixtures: int = 4, seed: int = 0
) -> MixtureScores:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * std

    digits = [draw(count, mixtures, length).to(dtype) for length in book.lengths]
    return MixtureScores(digits, draw(count, mixtures).log_softmax(dim=-1).to(dtype))


def dense(book: Codebook, scores: MixtureScores) -> Tensor:
    """(N, V) float64: log sum_k pi_k prod_h p_kh of every token, in the log domain throughout."""
    total = scores.log_gate.double().unsqueeze(-1)
    for h, score in enumerate(scores.digits):
        log_p = score.double().log_softmax(dim=-1)
        total = total + log_p[..., book.digits(torch.arange(len(book)))[:, h]]
    return total.logsumexp(dim=1)


def check_close(actual: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    atol, rtol = (1e-9, 1e-10) if dtype == torch.float64 else (2e-4, 2e-6)
    torch.testing.assert_close(actual.double(), expected, atol=atol, rtol=rtol)


@every_book
@every_std
@every_dtype
def test_topk_is_that_of_the_dense_mixture(name: str, std: float, dtype: torch.dtype) -> None:
    book = BOOKS[name]
    scores = scores_for(book, std, dtype)
    expected = dense(book, scores)
    for k in (1, 5, 100, VOCAB):
        best, slots = scores.topk(Lattice(book), k)
        assert best.dtype == dtype and best.shape == slots.shape == (6, k)
        tokens = book.token_of_slot[slots]
        assert int(tokens.min()) >= 0, "a hole among the best"
        assert all(len(set(row)) == k for row in tokens.tolist())
        assert bool((best[:, 1:] <= best[:, :-1]).all())
        check_close(best, expected.topk(k, dim=-1).values, dtype)
        check_close(best, expected.gather(-1, tokens), dtype)


@every_book
@every_std
@every_dtype
def test_mass_grid_and_joint_are_those_of_the_dense_mixture(
    name: str, std: float, dtype: torch.dtype
) -> None:
    book = BOOKS[name]
    scores = scores_for(book, std, dtype)
    expected = dense(book, scores)
    check_close(scores.log_mass(Lattice(book)), expected.logsumexp(dim=-1), dtype)
    check_close(scores.grid()[:, book.slots], expected, dtype)
    tokens = torch.tensor([0, 1999, 77, 77])
    check_close(scores.log_joint(book.digits(tokens)), expected[:, tokens], dtype)


@given(
    seed=st.integers(0, 9999),
    std=st.sampled_from(STDS),
    k=st.integers(1, 30),
    mixtures=st.integers(1, 5),
    name=st.sampled_from(sorted(BOOKS)),
)
def test_topk_on_random_mixtures(seed: int, std: float, k: int, mixtures: int, name: str) -> None:
    book = BOOKS[name]
    scores = scores_for(book, std, torch.float32, 3, mixtures, seed)
    best, slots = scores.topk(Lattice(book), k)
    expected = dense(book, scores)
    check_close(best, expected.topk(k).values, torch.float32)
    check_close(best, expected.gather(-1, book.token_of_slot[slots]), torch.float32)


def test_topk_of_peaked_mixtures_opens_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def counting(first: Tensor, second: Tensor) -> Tensor:
        opened.append(first.size(-1))
        return _log_matmul(first, second)

    monkeypatch.setattr(mixture, "_log_matmul", counting)
    book = BOOKS["2 digits, full"]
    scores_for(book, 6.0, torch.float32, count=20).topk(Lattice(book), 4)
    assert opened == [8], "8 of 40 rows are enough"


def test_the_best_of_no_rows() -> None:
    book = BOOKS["3 digits, full"]
    best, slots = scores_for(book, 1.0, torch.float32, count=0).topk(Lattice(book), 5)
    assert best.shape == slots.shape == (0, 5)


@every_dtype
def test_marginal_argmax(dtype: torch.dtype) -> None:
    book = BOOKS["3 digits, full"]
    for mixtures in (1, 4):
        scores = scores_for(book, 2.0, dtype, mixtures=mixtures)
        table = dense(book, scores).exp().view(-1, *book.lengths)
        for h, best in enumerate(scores.marginal_argmax()):
            others = [1 + other for other in range(3) if other != h]
            assert best.tolist() == table.sum(dim=others).argmax(dim=-1).tolist()


@given(
    shape=st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    std=st.sampled_from([0.0, 1.0, 40.0, 300.0]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 999),
)
def test_log_matmul_is_logsumexp(
    shape: tuple[int, int, int, int], std: float, dtype: torch.dtype, seed: int
) -> None:
    n, k, i, j = shape
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(n, k, i, generator=generator, dtype=torch.float64).mul(std).to(dtype)
    second = torch.randn(n, k, j, generator=generator, dtype=torch.float64).mul(std).to(dtype)
    copies = first.clone(), second.clone()
    expected = (first.double().unsqueeze(-1) + second.double().unsqueeze(-2)).logsumexp(dim=1)
    actual = _log_matmul(first, second)
    assert actual.dtype == dtype
    check_close(actual, expected, dtype)
    assert torch.equal(first, copies[0]) and torch.equal(second, copies[1])


def test_log_matmul_where_every_scaled_term_is_zero() -> None:
    first = torch.tensor([[[0.0], [-500.0]]])
    second = torch.tensor([[[-500.0, 0.0], [0.0, 0.0]]])
    assert torch.exp(torch.tensor(-500.0)) == 0
    expected = torch.tensor([[[-500.0 + math.log(2), 0.0]]])
    torch.testing.assert_close(_log_matmul(first, second), expected)
