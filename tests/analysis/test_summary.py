"""The numbers of the tables, and the sentences about them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given

from mhe_fairseq.analysis.bands import Bands
from mhe_fairseq.analysis.conclusion import compare, conclude
from mhe_fairseq.analysis.loss_parts import LossParts
from mhe_fairseq.analysis.summary import Summary, summarise
from mhe_fairseq.coding import Codebook
from tests.analysis.cases import batch, codebooks, counts, seeds


def summary(book: Codebook, count: int, seed: int) -> Summary:
    parts = LossParts(book)
    parts.update(*batch(count, len(book), seed))
    generator = torch.Generator().manual_seed(seed)
    training = torch.randint(3, (len(book),), generator=generator)
    return summarise(parts, Bands(training, eos=seed % len(book)), top=5)


@given(book=codebooks(), count=counts, seed=seeds)
def test_everything_adds_up(book: Codebook, count: int, seed: int) -> None:
    found = summary(book, count, seed)
    log_probs, target = batch(count, len(book), seed)
    total = found.total
    assert total.tokens == count
    assert total.bits == pytest.approx(total.loss / math.log(2))
    assert sum(row.loss for row in found.digits) == pytest.approx(total.loss)
    assert sum(row.tokens for row in found.bands) == count
    for h, digit in enumerate(found.digits):
        assert sum(row.digit_loss[h] for row in found.bands) == pytest.approx(digit.loss, abs=1e-12)
    if count:
        loss = float(-log_probs.double().gather(1, target[:, None]).mean())
        assert total.loss == pytest.approx(loss, abs=1e-12)
        assert total.perplexity == pytest.approx(math.exp(loss))
        best, predicted = log_probs.max(-1)
        assert total.accuracy == pytest.approx(float((predicted == target).float().mean()))
        assert total.confidence == pytest.approx(float(best.exp().mean()), rel=1e-5)
        assert sum(row.share for row in found.bands) == pytest.approx(1)
        assert sum(row.mass_share for row in found.bands) == pytest.approx(1, rel=1e-5)
    if total.loss:
        assert sum(row.loss_share for row in found.bands) == pytest.approx(1)
        assert sum(row.loss_share for row in found.digits) == pytest.approx(1)
    if not count:
        empty = {(row.loss, row.recall, row.precision, row.mass_ratio) for row in found.bands}
        assert total.loss == 0.0 and empty == {(None, None, None, None)} and found.confused == []


def example() -> Summary:
    """Tokens a, b and the end, 2; the end gets too much probability."""
    parts = LossParts(Codebook((2, 2), vocab_size=3))
    probs = torch.tensor([[0.5, 0.1, 0.4], [0.1, 0.5, 0.4], [0.3, 0.4, 0.3], [0.1, 0.0, 0.9]])
    parts.update((probs + 1e-9).log(), torch.tensor([0, 1, 0, 2]))
    return summarise(parts, Bands(torch.tensor([9, 0, 5]), eos=2), top=3)


def test_a_band_by_hand() -> None:
    eos, frequent, unseen = example().bands
    assert (eos.band, frequent.band, unseen.band) == ("EOS", "1-10", "never seen")
    assert (eos.tokens, frequent.tokens, unseen.tokens) == (1, 2, 1)
    assert (eos.recall, eos.precision) == (1.0, 1.0)
    assert (frequent.recall, frequent.precision) == (0.5, 1.0)
    assert (unseen.recall, unseen.precision) == (1.0, 0.5)
    assert eos.mass_share == pytest.approx(2.0 / 4, rel=1e-4) and eos.mass_ratio == pytest.approx(2, rel=1e-4)
    assert frequent.loss == pytest.approx(-math.log(0.5 * 0.3) / 2, rel=1e-4)


def test_the_pairs_of_another_model() -> None:
    parts = LossParts(Codebook((2, 2), vocab_size=3))
    parts.update(torch.tensor([[0.1, 0.1, 0.8]]).log(), torch.tensor([0]))
    found = summarise(parts, Bands(torch.ones(3).long(), eos=2), top=3, pairs=[(1, 0), (0, 1)])
    assert [(pair.gold, pair.predicted, pair.count) for pair in found.confused] == [(1, 0, 0), (0, 1, 1)]


def test_the_conclusion_names_the_largest() -> None:
    one = example()
    said = conclude(one)
    shares = [row.loss_share for row in one.digits]
    digit = shares.index(max(shares))
    assert said.startswith(
        f"{shares[digit]:.0%} of the loss is in digit {digit + 1}; tokens of rank 1-10 are 50%"
    )
    assert "EOS gets 2.00 times its share of the probability, which ends sentences early" in said
    assert "EOS is 25.0% of the text and gets 50.0% of the probability" in said
    # Three of four are right.
    assert said.endswith(
        "too unsure of itself: its predictions have a probability of 57.5% and 75.0% of them are right."
    )
    good = replace(one, total=replace(one.total, accuracy=0.58))
    assert "sure" not in conclude(good)
    bands = [replace(one.bands[0], mass_ratio=0.5), *one.bands[1:]]
    assert "EOS gets 0.50 times its share of the probability, which ends sentences late" in conclude(
        replace(one, bands=bands)
    )


def test_the_comparison_names_what_goes_furthest_the_same_way() -> None:
    one = example()
    digits = [replace(one.digits[0], loss=one.digits[0].loss + 0.5), one.digits[1]]
    bands = [*one.bands[:2], replace(one.bands[2], digit_loss=(one.bands[2].digit_loss[0] + 0.5, 0.0))]
    worse = replace(one, total=replace(one.total, loss=one.total.loss + 0.5), digits=digits, bands=bands)
    assert compare(worse, one).startswith(
        "The first model loses 0.500 nats a token more than the second: +0.500 in digit 1, "
    )
    assert compare(worse, one).endswith(" at tokens never seen in training.")
    assert "0.500 nats a token less than the second: -0.500 in digit 1" in compare(one, worse)
    assert compare(one, one) == "Both models lose as much."
