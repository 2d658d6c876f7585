"""Sums over a text, against what is counted one position at a time."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given

from mhe_fairseq.analysis.loss_parts import LossParts, digit_losses
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from tests.analysis.cases import batch, codebooks, counts, seeds


def mass(probs: list[float], book: Codebook, prefix: list[int]) -> float:
    """Probability of all tokens whose digits begin so."""
    digits = book.digits(torch.arange(len(book))).tolist()
    return sum(p for p, each in zip(probs, digits, strict=True) if each[: len(prefix)] == prefix)


@given(book=codebooks(), count=counts, seed=seeds)
def test_digits_follow_the_chain_rule(book: Codebook, count: int, seed: int) -> None:
    log_probs, target = batch(count, len(book), seed)
    losses, correct = digit_losses(log_probs, target, book)
    assert losses.shape == correct.shape == (count, book.heads) and losses.dtype == torch.float64
    for n in range(count):
        probs = log_probs[n].double().exp().tolist()
        gold = book.digits(target[n]).tolist()
        for h in range(book.heads):
            before, here = (mass(probs, book, gold[: h + i]) if h + i else 1.0 for i in (0, 1))
            assert float(losses[n, h]) == pytest.approx(-math.log(here / before), abs=1e-5)
            choices = [mass(probs, book, [*gold[:h], digit]) for digit in range(book.lengths[h])]
            # Two digits may be equally probable but for rounding.
            assert choices[gold[h]] >= (1 - 1e-5) * max(choices) or not correct[n, h]
            assert correct[n, h] or choices[gold[h]] <= (1 + 1e-5) * max(
                choices[digit] for digit in range(len(choices)) if digit != gold[h]
            )


@given(book=codebooks(), count=counts, seed=seeds)
def test_digits_add_up_to_the_loss(book: Codebook, count: int, seed: int) -> None:
    log_probs, target = batch(count, len(book), seed)
    losses, _ = digit_losses(log_probs, target, book)
    expected = -log_probs.double().gather(1, target[:, None])[:, 0]
    torch.testing.assert_close(losses.sum(-1), expected, atol=1e-12, rtol=1e-12)


@given(book=codebooks(), count=counts, seed=seeds)
def test_sums_of_two_batches(book: Codebook, count: int, seed: int) -> None:
    size = len(book)
    parts = LossParts(book)
    batches = [batch(count, size, seed), batch(3, size, seed + 1)]
    for each in batches:
        parts.update(*each)
    log_probs, target = (torch.cat(pair) for pair in zip(*batches, strict=True))
    losses, digit_correct = digit_losses(log_probs, target, book)
    predicted = log_probs.argmax(-1)
    assert parts.tokens == count + 3
    for token in range(size):
        here = target == token
        assert int(parts.gold[token]) == int(here.sum())
        assert int(parts.predicted[token]) == int((predicted == token).sum())
        assert int(parts.correct[token]) == int((here & (predicted == token)).sum())
        torch.testing.assert_close(parts.digit_loss[token], losses[here].sum(0))
    torch.testing.assert_close(parts.mass, log_probs.double().exp().sum(0), atol=1e-5, rtol=1e-5)
    assert parts.digit_correct.tolist() == digit_correct.sum(0).tolist()


def test_a_group_of_next_to_no_probability() -> None:
    """Probabilities that fp32 cannot hold add up all the same."""
    book = Codebook((2, 2))
    log_probs = torch.tensor([[0.0, -300.0, -400.0, -400.0]])
    losses, _ = digit_losses(log_probs, torch.tensor([3]), book)
    assert losses[0].tolist() == [pytest.approx(400 - math.log(2)), pytest.approx(math.log(2), abs=1e-4)]


def test_another_vocabulary_is_refused() -> None:
    with pytest.raises(MHEError, match="probabilities for 5 tokens and the codebook is for 6"):
        LossParts(Codebook((2, 3))).update(torch.zeros(1, 5), torch.zeros(1, dtype=torch.long))
