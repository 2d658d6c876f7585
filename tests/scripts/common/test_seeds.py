"""scripts/common/seeds.py: one figure, or a mean and half of a range."""

from __future__ import annotations

import pytest

from scripts.common.seeds import spread


def test_one_seed_is_its_figure() -> None:
    assert spread([16.25]) == 16.25


def test_of_several_the_mean_and_half_of_the_range() -> None:
    assert spread([15.0, 18.0, 16.5]) == pytest.approx([16.5, 1.5])
