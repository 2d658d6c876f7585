"""A shortlist has first digits for itself, and the rest is laid out in what is left."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.assign import Ints, order_slots
from mhe_fairseq.coding.shortlist import plan_shortlist, shortlist_slots
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import ProductHead


def in_order(tokens: Ints, lengths: tuple[int, ...]) -> torch.Tensor:
    return order_slots(np.arange(len(tokens)), lengths)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Ints, int, tuple[int, ...]]:
    vocab = draw(st.integers(2, 200))
    shortlist = draw(st.integers(1, vocab - 1))
    others = draw(st.lists(st.integers(1, 9), min_size=1, max_size=2))
    groups = math.ceil((vocab - shortlist) / math.prod(others)) + draw(st.integers(0, 3))
    counts = draw(st.lists(st.integers(0, 5), min_size=vocab, max_size=vocab))
    return np.array(counts), shortlist, (shortlist + groups, *others)


@given(case=cases())
def test_frequent_tokens_are_alone_and_the_rest_is_as_laid_out(
    case: tuple[Ints, int, tuple[int, ...]],
) -> None:
    counts, shortlist, lengths = case
    book = Codebook(lengths, shortlist_slots(counts, lengths, shortlist, in_order))
    digits = book.digits(torch.arange(len(book)))
    is_short = digits[:, 0] < shortlist
    assert int(is_short.sum()) == shortlist
    assert digits[is_short, 0].sort().values.tolist() == list(range(shortlist)), "each alone"
    assert not bool(digits[is_short, 1:].any())
    frequent = counts[is_short.numpy()]
    assert frequent.min() >= counts[~is_short.numpy()].max()
    # In order of frequency, of the dictionary among equals.
    by_rank = torch.arange(len(book))[is_short][digits[is_short, 0].argsort()].tolist()
    assert by_rank == sorted(by_rank, key=lambda token: (-counts[token], token))
    others = (~is_short).nonzero().squeeze(-1)
    rest = Codebook(
        (lengths[0] - shortlist, *lengths[1:]),
        in_order(others.numpy(), (lengths[0] - shortlist, *lengths[1:])),
    )
    expected = rest.digits(torch.arange(len(others)))
    expected[:, 0] += shortlist
    assert torch.equal(digits[others], expected)


@given(vocab=st.integers(2, 10_000), share=st.floats(0, 1))
def test_planned_lengths_suffice_and_balance(vocab: int, share: float) -> None:
    shortlist = max(1, min(vocab - 1, round(share * vocab)))
    groups, width = plan_shortlist(vocab, shortlist)
    assert (groups - shortlist) * width >= vocab - shortlist > (groups - shortlist - 1) * width
    assert groups - shortlist <= shortlist


def test_product_over_a_shortlist_can_be_any_distribution_of_it() -> None:
    """Over the grid alone, a product of digits cannot give (0, 0) and (1, 1) a half each."""
    counts = np.array([9, 8, 1, 1, 1, 1])
    lengths = plan_shortlist(6, 2)
    head = ProductHead(3, Codebook(lengths, shortlist_slots(counts, lengths, 2, in_order)))
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[:2] = 30.0
    p = head.log_probs(torch.zeros(1, 3)).exp()
    assert p[0, :2].tolist() == pytest.approx([0.5, 0.5])
    assert p[0].sum().item() == pytest.approx(1.0)


@pytest.mark.parametrize("shortlist", [0, -1, 6, 7])
def test_a_shortlist_of_none_or_all_is_refused(shortlist: int) -> None:
    with pytest.raises(MHEError, match=f"at least 1 token and fewer than all 6; got {shortlist}"):
        plan_shortlist(6, shortlist)
    with pytest.raises(MHEError, match="at least 1 token"):
        shortlist_slots(np.ones(6, dtype=np.int64), (10, 10), shortlist, in_order)


def test_lengths_that_do_not_fit_are_refused() -> None:
    counts = np.ones(100, dtype=np.int64)
    with pytest.raises(MHEError, match="at least two lengths; got 100"):
        shortlist_slots(counts, (100,), 10, in_order)
    with pytest.raises(
        MHEError, match=r"lengths 15,10 have 50 slots beside a shortlist of 10, for the 90 other"
    ):
        shortlist_slots(counts, (15, 10), 10, in_order)
    with pytest.raises(MHEError, match="lengths 5,100 have 0 slots"):
        shortlist_slots(counts, (5, 100), 10, in_order)
