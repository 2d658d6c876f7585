"""The automaton of digits: sums and best sequences over exactly the real tokens, in few states."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.product.lattice import Lattice
from tests.heads.oracle import codebooks


def scores_for(book: Codebook, shape: tuple[int, ...], seed: int, std: float = 1.0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(*shape, length, generator=generator, dtype=torch.float64) * std for length in book.lengths
    ]


def token_scores(book: Codebook, scores: list[Tensor]) -> Tensor:
    """(..., V): the sum of each token's digit scores."""
    total = scores[0].new_zeros(*scores[0].shape[:-1], 1)
    for score in scores:  # every combination, first digit slowest
        total = (total.unsqueeze(-1) + score.unsqueeze(-2)).flatten(-2)
    return total[..., book.slots]


@given(
    book=codebooks(max_vocab=400, max_heads=4), seed=st.integers(0, 99), std=st.sampled_from([0.0, 1.0, 30.0])
)
def test_log_mass_is_the_sum_over_tokens(book: Codebook, seed: int, std: float) -> None:
    scores = scores_for(book, (2, 3), seed, std)
    expected = token_scores(book, scores).logsumexp(dim=-1)
    lattice = Lattice(book)
    sums = [each.read(scores[each.level]).logsumexp(dim=-1) for each in lattice.sets]
    for mass in (
        lattice.log_mass(scores),
        lattice.log_mass(scores, sums[: len(book.lengths)]),
        lattice.log_mass_of(sums),
    ):
        torch.testing.assert_close(mass, expected, atol=1e-10, rtol=1e-10)


@given(book=codebooks(max_vocab=400, max_heads=4))
def test_sets_are_whole_digits_and_then_those_of_edges_each_once(book: Codebook) -> None:
    lattice = Lattice(book)
    heads = len(book.lengths)
    assert [(each.level, each.values) for each in lattice.sets[:heads]] == [(h, None) for h in range(heads)]
    used = set()
    for level, states in enumerate(lattice.levels):
        for edge in (edge for edges in states for edge in edges):
            assert lattice.sets[edge.number] is edge.columns and edge.columns.level == level
            used.add(edge.number)
    assert used >= set(range(heads, len(lattice.sets))), "no set that no edge has"
    rest = [(each.level, each.values) for each in lattice.sets[heads:]]
    distinct = {(level, tuple(values.tolist())) for level, values in rest if values is not None}
    assert len(distinct) == len(rest)
    assert all(len(values) < book.lengths[level] for level, values in distinct)


@given(
    book=codebooks(max_vocab=400, max_heads=4),
    k=st.integers(1, 500),
    seed=st.integers(0, 99),
    std=st.sampled_from([1.0, 30.0]),
)
def test_topk_is_the_best_tokens(book: Codebook, k: int, seed: int, std: float) -> None:
    scores = scores_for(book, (3,), seed, std)
    expected = token_scores(book, scores)
    count = min(k, len(book))
    best, slots = Lattice(book).topk(scores, k)
    assert best.shape == slots.shape == (3, count)
    tokens = book.token_of_slot[slots]
    assert int(tokens.min()) >= 0, "a hole among the best"
    assert all(len(set(row)) == count for row in tokens.tolist())
    torch.testing.assert_close(best, expected.topk(count, dim=-1).values, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(best, expected.gather(-1, tokens), atol=1e-10, rtol=1e-10)


def test_topk_of_equal_scores_gives_different_tokens() -> None:
    book = Codebook((4, 5), vocab_size=17)
    _, slots = Lattice(book).topk([torch.zeros(2, 4), torch.zeros(2, 5)], 17)
    assert slots.sort().values.tolist() == [list(range(17))] * 2


def test_no_rows() -> None:
    book = Codebook((4, 5), vocab_size=17)
    scores = scores_for(book, (0,), 0)
    assert Lattice(book).log_mass(scores).shape == (0,)
    assert Lattice(book).topk(scores, 3)[0].shape == (0, 3)


def states(book: Codebook) -> list[int]:
    return [len(level) for level in Lattice(book).levels]


@pytest.mark.parametrize("lengths", [(300,), (128, 256), (30, 40, 50), (6, 7, 8, 9)])
def test_few_states_with_holes_at_the_end(lengths: tuple[int, ...]) -> None:
    full = Codebook(lengths)
    assert Lattice(full).full and states(full) == [1] * len(lengths)
    for missing in (1, 17, full.size // 3, full.size - 1):
        book = Codebook(lengths, vocab_size=full.size - missing)
        assert not Lattice(book).full
        # Prefixes are before the end of the vocabulary, or on it.
        assert states(book)[0] == 1 and max(states(book)) <= 2


def test_few_states_with_holes_at_the_ends_of_rows() -> None:
    slots = torch.arange(50 * 60).view(50, 60)[:, :57].flatten()
    slots = slots[slots % 60 < 57 - (slots // 60) % 2]  # 57 or 56 tokens a row
    assert states(Codebook((50, 60), slots)) == [1, 2]


def test_empty_rows_have_no_state() -> None:
    book = Codebook((5, 3), torch.tensor([3, 4, 5, 12, 13, 14]))  # rows 1 and 4, all full
    (root,), (row,) = Lattice(book).levels
    (edge,) = root
    assert edge.digits is not None and edge.digits.tolist() == [1, 4]
    assert [inner.digits for inner in row] == [None]


def test_the_least_states_are_found() -> None:
    """As many states as there are different patterns of tokens below a prefix."""
    slots = torch.randperm(4 * 4 * 3, generator=torch.Generator().manual_seed(0))[:20]
    book = Codebook((4, 4, 3), slots)
    taken = (book.token_of_slot >= 0).view(4, 4, 3)
    rows = {tuple(row) for row in taken.view(16, 3).tolist() if any(row)}
    tables = {str(table) for table in taken.tolist() if any(map(any, table))}
    assert states(book) == [1, len(tables), len(rows)]
