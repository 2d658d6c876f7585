"""Calibration, against its definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from mhe_fairseq.analysis.calibration import BINS, Calibration
from tests.analysis.cases import counts, seeds


@given(count=counts, seed=seeds)
def test_the_definition(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = torch.rand(count, generator=generator)
    right = torch.rand(count, generator=generator) < 0.5
    calibration = Calibration()
    for part in (slice(0, 1), slice(1, None)):
        calibration.update(confidence[part], right[part])
    bins = calibration.bins()
    assert len(bins) == BINS and sum(each.size for each in bins) == count
    error = 0.0
    for number, each in enumerate(bins):
        here = [i for i in range(count) if int(float(confidence[i]) * BINS) == number]
        assert each.size == len(here)
        if here:
            assert each.confidence == pytest.approx(float(confidence[here].mean()))
            assert each.accuracy == pytest.approx(float(right[here].float().mean()))
            error += len(here) / count * abs(each.confidence - each.accuracy)
    assert calibration.error == pytest.approx(error)
    assert calibration.confidence == pytest.approx(float(confidence.mean()) if count else 0.0)


def test_as_sure_as_it_is_right() -> None:
    calibration = Calibration()
    calibration.update(torch.full((4,), 0.75), torch.tensor([True, True, True, False]))
    assert calibration.error == 0.0
    # A probability of one, and one that rounding has put above it, are in the last bin.
    calibration.update(torch.tensor([1.0, 1.0 + 1e-6]), torch.tensor([False, False]))
    assert calibration.bins()[-1].size == 2
    assert calibration.error == pytest.approx(2 / 6, abs=1e-6)
