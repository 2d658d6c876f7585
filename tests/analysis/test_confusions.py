"""Confused groups, against what is counted one prediction at a time."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.analysis import confusions
from mhe_fairseq.analysis.confusions import EXAMPLES, Confusions, GroupPair
from mhe_fairseq.coding import Codebook
from tests.analysis.cases import codebooks, counts, seeds


@given(book=codebooks(), count=counts, seed=seeds, top=st.integers(1, 4))
def test_the_worst_pairs(book: Codebook, count: int, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    gold, predicted = torch.randint(len(book), (2, count), generator=generator)
    loss = torch.rand(count, generator=generator)
    found = Confusions(len(book))
    for part in (slice(0, 4), slice(4, None)):
        found.update(gold[part], predicted[part], loss[part])
    times: Counter[tuple[int, int]] = Counter()
    lost: Counter[tuple[int, int]] = Counter()
    digits = book.digits(torch.arange(len(book)))[:, 0].tolist()
    for g, p, each in zip(gold.tolist(), predicted.tolist(), loss.tolist(), strict=True):
        if digits[g] != digits[p]:
            times[digits[g], digits[p]] += 1
            lost[digits[g], digits[p]] += each
    pairs = found.worst(book, top)
    assert len(pairs) == min(top, len(times))
    assert [pair.loss for pair in pairs] == pytest.approx(sorted(lost.values(), reverse=True)[:top])
    for pair in pairs:
        assert pair.count == times[pair.gold, pair.predicted]
        assert pair.loss == pytest.approx(lost[pair.gold, pair.predicted])
        assert 1 <= len(pair.examples) <= EXAMPLES
        for g, p, number in pair.examples:
            assert (digits[g], digits[p]) == (pair.gold, pair.predicted)
            assert number == int(((gold == g) & (predicted == p)).sum())
    assert found.of(book, [(pair.gold, pair.predicted) for pair in pairs]) == pairs


def test_examples_are_those_with_the_most_loss() -> None:
    book = Codebook((2, 5))
    found = Confusions(10)
    found.update(torch.tensor([0, 0, 1, 2, 3, 4]), torch.tensor([5, 5, 5, 6, 7, 1]), torch.arange(6.0))
    (pair,) = found.worst(book, 10)
    # 4 -> 1 is wrong inside its group.
    assert pair == GroupPair(0, 1, 5, 10.0, ((3, 7, 1), (2, 6, 1), (1, 5, 1)))
    assert found.of(book, [(1, 0)]) == [GroupPair(1, 0, 0, 0.0, ())]


def test_nothing_wrong() -> None:
    found = Confusions(4)
    assert found.worst(Codebook((2, 2)), 3) == []
    found.update(torch.arange(4), torch.arange(4), torch.ones(4))
    assert found.worst(Codebook((2, 2)), 3) == []


def test_many_batches_are_merged_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    merges = []
    plain = confusions._sums

    def counted(*parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        merges.append(1)
        return plain(*parts)

    monkeypatch.setattr(confusions, "_sums", counted)
    found = Confusions(200)
    gold = torch.arange(100)
    for shift in range(1, 201):
        found.update(gold, 100 + (gold + shift) % 100, torch.ones(100))
    # One at the beginning, one of 10,000 new ones and one of the 20,000 after them: not one a batch.
    assert len(merges) <= 3
    (pair,) = found.worst(Codebook((2, 100)), 5)
    assert (pair.count, pair.loss) == (20_000, 20_000.0)
