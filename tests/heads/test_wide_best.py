"""The best of logits as wide as the vocabulary, found block by block."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mhe_fairseq.heads import wide_best
from mhe_fairseq.heads.wide_best import best_of, log_sum_of


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5),
    vocab=st.integers(1, 700),
    k=st.integers(1, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**16),
)
def test_as_topk_and_logsumexp(rows: int, vocab: int, k: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, vocab, generator=generator, dtype=dtype) * 9
    k = min(k, vocab)
    expected, best = logits.topk(k, dim=1), best_of(logits, k)
    assert best[0].equal(expected.values) and best[1].equal(expected.indices)
    total = log_sum_of(logits.clone(), best[0][:, :1])
    torch.testing.assert_close(total, logits.logsumexp(dim=1, keepdim=True))


def test_equal_and_missing_numbers() -> None:
    logits = torch.zeros(3, 64 * 20 + 7)
    logits[1] = -torch.inf
    logits[1, [70, 64 * 20 + 3]] = 1.0
    logits[2, 5] = torch.nan
    best, places = best_of(logits, 3)
    assert best[0].tolist() == [0, 0, 0] and len(set(places[0].tolist())) == 3
    assert best[1].tolist() == [1, 1, -torch.inf] and set(places[1, :2].tolist()) == {70, 64 * 20 + 3}
    assert best[2, 0].isnan() and places[2, 0] == 5  # as topk: it reaches who asked
    assert log_sum_of(logits, best[:, :1])[2].isnan()


def test_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    from mhe_fairseq.coding import Codebook, plan_lengths
    from mhe_fairseq.heads import SoftmaxHead

    head = SoftmaxHead(8, Codebook(plan_lengths(300), vocab_size=300)).eval()
    x, asked = torch.randn(11, 8), torch.tensor([0, 299])
    whole = head.read(x).candidates(2, asked)
    monkeypatch.setattr(wide_best, "_HELD", 1)
    monkeypatch.setattr(wide_best, "_ROWS", 4)
    reading = head.read(x)
    for a, b in zip(reading.candidates(2, asked), whole, strict=True):
        torch.testing.assert_close(a, b)
    # Known from before, or computed now.
    for each in (reading, head.read(x)):
        torch.testing.assert_close(each.log_prob_of(asked), head.log_probs(x)[:, asked])
    assert [tuple(each.shape) for each in head.read(x[:0]).candidates(2, asked)] == [(0, 2), (0, 2), (0, 2)]
