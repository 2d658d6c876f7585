"""plan_lengths covers the vocabulary with little waste; parse_lengths says what is wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mhe_fairseq.coding import parse_lengths, plan_lengths
from mhe_fairseq.coding.plan import plan_label_lengths
from mhe_fairseq.errors import MHEError


@given(vocab=st.integers(1, 2_000_000), heads=st.integers(1, 4))
@example(vocab=1, heads=4)
@example(vocab=2, heads=3)
@example(vocab=2_000_000, heads=4)
@example(vocab=1_999_993, heads=2)  # a prime
def test_a_plan_covers_the_vocabulary_and_no_more_than_needed(vocab: int, heads: int) -> None:
    lengths = plan_lengths(vocab, heads)
    assert len(lengths) == heads and min(lengths) >= 1
    assert list(lengths) == sorted(lengths)
    product = math.prod(lengths)
    assert product >= vocab
    # One less in the shortest digit is too few.
    assert product // lengths[0] * (lengths[0] - 1) < vocab
    # Balanced: the longest is near the H-th root, the shortest too.
    balanced = vocab ** (1 / heads)
    assert lengths[-1] <= math.ceil(2.5 * balanced)
    assert lengths[0] >= math.floor(balanced / 2.5)
    assert parse_lengths(lengths, vocab) == lengths


@pytest.mark.parametrize(
    ("vocab", "heads", "lengths"),
    [
        (32768, 2, (128, 256)),
        (1, 1, (1,)),
        (1, 3, (1, 1, 1)),
        (1000, 1, (1000,)),
        (10000, 2, (100, 100)),
        (1000, 3, (10, 10, 10)),
    ],
)
def test_known_plans(vocab: int, heads: int, lengths: tuple[int, ...]) -> None:
    assert plan_lengths(vocab, heads) == lengths


def test_two_heads_are_the_default() -> None:
    assert plan_lengths(32768) == (128, 256)


@pytest.mark.parametrize(
    ("vocab", "heads", "sentence"),
    [
        (0, 2, "a vocabulary needs at least 1 token, got 0"),
        (-5, 2, "a vocabulary needs at least 1 token, got -5"),
        (10, 0, "a token needs at least 1 digit, got heads=0"),
        (10, -1, "a token needs at least 1 digit, got heads=-1"),
    ],
)
def test_impossible_plans(vocab: int, heads: int, sentence: str) -> None:
    with pytest.raises(MHEError) as caught:
        plan_lengths(vocab, heads)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("text", "vocab", "lengths"),
    [
        ("128,256", None, (128, 256)),
        ("128,256", 32768, (128, 256)),
        (" 3 , 4,5 ", 60, (3, 4, 5)),
        ("7", 7, (7,)),
        ([3, 4], 12, (3, 4)),
        ((1,), None, (1,)),
        (["8", "12"], 90, (8, 12)),
        (torch.tensor([8, 12]), 90, (8, 12)),
    ],
)
def test_good_lengths(text: str | Sequence[int], vocab: int | None, lengths: tuple[int, ...]) -> None:
    assert parse_lengths(text, vocab) == lengths


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("a,b", "a,b"),
        ("128;256", "128;256"),
        ("128,", "128,"),
        ("2.7,3", "2.7,3"),
        ("0x10,2", "0x10,2"),
        ([2.7, 3], "2.7,3"),
        ([3.0, 4], "3.0,4"),
        ([None, 4], "None,4"),
        (["8", "many"], "8,many"),
        (torch.tensor([2.7, 3.0]), "tensor(2.7000),tensor(3.)"),
    ],
)
def test_lengths_that_are_no_whole_numbers(text: str | Sequence[int], shown: str) -> None:
    with pytest.raises(MHEError) as caught:
        parse_lengths(text)
    assert str(caught.value) == (
        f"lengths must be whole numbers separated by commas, such as 128,256; got {shown!r}"
    )


def test_more_slots_than_memory() -> None:
    with pytest.raises(MHEError, match="128,99999999 give 12799999872 slots, more than the 268435456"):
        parse_lengths("128,99999999", 32768)


@pytest.mark.parametrize(
    ("text", "shown"),
    [("0,5", "0,5"), ("5,0", "5,0"), ("-3,4", "-3,4"), ("-3,-4", "-3,-4"), ([2, -1], "2,-1"), ([], "")],
)
def test_lengths_below_one(text: str | Sequence[int], shown: str) -> None:
    with pytest.raises(MHEError) as caught:
        parse_lengths(text, 1)
    assert str(caught.value) == f"every length must be at least 1, got {shown!r}"


def test_too_few_slots_with_a_suggestion_that_works() -> None:
    with pytest.raises(MHEError) as caught:
        parse_lengths("100,200", 32768)
    assert str(caught.value) == (
        "lengths 100,200 give 20000 slots for 32768 tokens; their product must be at least 32768, "
        "such as 128,256"
    )


@given(vocab=st.integers(2, 2_000_000), heads=st.integers(1, 4))
def test_every_suggestion_works(vocab: int, heads: int) -> None:
    with pytest.raises(MHEError) as caught:
        parse_lengths([1] * heads, vocab)
    suggestion = str(caught.value).rpartition("such as ")[2]
    assert len(parse_lengths(suggestion, vocab)) == heads


@given(labels=st.integers(1, 5_000_000))
def test_groups_of_labels_are_many_and_hold_all_labels(labels: int) -> None:
    groups, size = plan_label_lengths(labels)
    assert labels <= groups * size < labels + size
    assert size == min(labels, 4) or abs(size - labels**0.5 / 8) <= 0.5


def test_known_groups_of_labels() -> None:
    assert plan_label_lengths(1) == (1, 1)
    assert plan_label_lengths(3) == (1, 3)
    assert plan_label_lengths(10_232) == (788, 13)
    assert plan_label_lengths(500_000) == (5_682, 88)
    with pytest.raises(MHEError, match="at least 1 label"):
        plan_label_lengths(0)
