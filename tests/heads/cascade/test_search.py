"""The best tokens of a cascade, found by opening groups best first."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.cascade import search as cascade_search
from mhe_fairseq.heads.cascade.level import Level
from tests.heads.cascade.cases import DIM, HOLED, both_depths, build
from tests.heads.oracle import features_for


@both_depths
def test_topk_in_small_pieces(book: Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = build("plain", book)
    features = features_for(6, DIM, torch.float64, 1)
    expected = head.topk(features, len(book))
    monkeypatch.setattr(cascade_search, "_HELD", 1)
    monkeypatch.setattr(cascade_search, "_FIRST", 1)
    torch.testing.assert_close(head.topk(features, len(book)), expected)


def test_topk_with_equal_scores() -> None:
    _, head = build("plain", Codebook((5, 4), vocab_size=18))
    features = torch.zeros(2, DIM, dtype=torch.float64)
    with torch.no_grad():
        head.group.bias.zero_()
    scores, tokens = head.topk(features, 11)
    torch.testing.assert_close(scores, head.log_probs(features).topk(11).values)
    assert len(set(tokens[0].tolist())) == 11


def test_topk_opens_only_groups_that_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = build("plain", Codebook((64, 64)), std=0.1)
    opened = []
    original = Level.log_softmax

    def counted(self: Level, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        opened.append(len(prefix))
        return original(self, x, prefix, rows)

    monkeypatch.setattr(Level, "log_softmax", counted)
    features = features_for(10, DIM, torch.float64, 1)
    with torch.no_grad():
        head.group.bias[5] = 20.0
    head.topk(features, 10)
    assert sum(opened) == 10 * cascade_search._FIRST  # one round
    opened.clear()
    with torch.no_grad():
        head.group.bias.zero_()
    head.topk(features, 10)
    assert sum(opened) <= 10 * 64  # no group twice, however flat the distribution


def test_topk_of_nan_is_nan_and_ends() -> None:
    _, head = build("plain", HOLED)
    features = features_for(3, DIM, torch.float64, 1)
    features[1] = torch.nan
    scores, tokens = head.topk(features, 4)
    assert scores.isnan().any(dim=1).tolist() == [False, True, False]
    assert ((tokens >= 0) & (tokens < len(HOLED))).all()
