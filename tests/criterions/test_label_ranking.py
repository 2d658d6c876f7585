"""P@k, nDCG@k and PSP@k against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mhe_fairseq.criterions.label_ranking import RankingSums, inverse_propensities, percentages
from mhe_fairseq.errors import MHEError


def test_propensities_by_hand() -> None:
    # N = 100, A = 0.5, B = 1: C = (4.60517 - 1) sqrt(2) = 5.09848; N_l + B = 1, 4 and 100.
    inverse = inverse_propensities(torch.tensor([0, 3, 99]), 100, 0.5, 1.0)
    assert inverse.tolist() == pytest.approx([1 + 5.09848, 1 + 5.09848 / 2, 1 + 5.09848 / 10], abs=1e-5)


def test_measures_by_hand() -> None:
    inverse = torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0], dtype=torch.float64)
    ranked = torch.tensor([[0, 1, 2, 3, 4], [5, 4, 3, 2, 1], [1, 0, 2, 3, 4]])
    labels = torch.tensor([[2, 0, -1], [0, -1, -1], [-1, -1, -1]])
    sums = RankingSums()
    # In two batches, the document without labels by itself.
    sums.add(ranked[:2], labels[:2], inverse)
    sums.add(ranked[2:], labels[2:], inverse)
    assert (sums.documents, sums.unlabelled) == (2, 1)
    found = percentages(sums.sums, sums.documents)
    # The first document has its labels at places 1 and 3, the second none among its five.
    assert found["P@1"] == pytest.approx(100 * 1 / 2)
    assert found["P@3"] == pytest.approx(100 * (2 / 3) / 2)
    assert found["P@5"] == pytest.approx(100 * (2 / 5) / 2)
    ideal = 1 + 1 / math.log2(3)
    assert found["nDCG@1"] == pytest.approx(100 * 1 / 2)
    assert found["nDCG@3"] == found["nDCG@5"] == pytest.approx(100 * ((1 + 1 / 2) / ideal) / 2)
    # The best first label of the first document is 2 (weight 4), of the second 0 (weight 1).
    assert found["PSP@1"] == pytest.approx(100 * 1 / (4 + 1))
    assert found["PSP@3"] == found["PSP@5"] == pytest.approx(100 * (1 + 4) / (4 + 1 + 1))


def test_fewer_ranked_labels_than_places() -> None:
    sums = RankingSums()
    sums.add(torch.tensor([[1, -1]]), torch.tensor([[-1, 1]]), torch.ones(2, dtype=torch.float64))
    found = percentages(sums.sums, sums.documents)
    assert [round(found[f"P@{k}"], 3) for k in (1, 3, 5)] == [100.0, 33.333, 20.0]
    assert found["nDCG@5"] == found["PSP@5"] == 100.0


@pytest.mark.parametrize(
    ("documents", "b", "said"), [(2, 1.5, "at least 3"), (10, -1.0, "got -1"), (10, 0.0, "above 0, got 0")]
)
def test_propensities_refuse_bad_numbers(documents: int, b: float, said: str) -> None:
    with pytest.raises(MHEError, match=said):
        inverse_propensities(torch.tensor([1]), documents, 0.55, b)
