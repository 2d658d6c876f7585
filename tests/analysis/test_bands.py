"""Bands of frequency."""

from __future__ import annotations

import torch

from mhe_fairseq.analysis.bands import Bands


def test_ranks_are_of_the_counts_and_eos_has_none() -> None:
    counts = torch.tensor([0, 500, 900, 3, *range(200, 180, -1)])
    bands = Bands(counts, eos=2)
    assert bands.names == ["EOS", "1-10", "11-100", "never seen"] and len(bands) == 4
    # Token 1 is the most frequent, then 4, 5, ... 12; token 3 the least frequent that occurs.
    assert bands.band_of_token.tolist() == [3, 1, 0, 2, *[1] * 9, *[2] * 11]


def test_all_bands() -> None:
    counts = torch.arange(20_000, 0, -1)
    counts[-5:] = 0
    bands = Bands(counts, eos=7)
    names = ["EOS", "1-10", "11-100", "101-1000", "1001-10000", "beyond 10000", "never seen"]
    assert bands.names == names
    assert bands.sum(torch.ones(20_000)).tolist() == [1, 10, 90, 900, 9_000, 9_994, 5]
    assert bands.band_of_token[[0, 6, 8, 10, 11, 10_000, 10_001]].tolist() == [1, 1, 1, 1, 2, 4, 5]


def test_an_end_that_never_occurs() -> None:
    bands = Bands(torch.tensor([4, 0, 0]), eos=2)
    assert bands.names == ["EOS", "1-10", "never seen"] and bands.band_of_token.tolist() == [1, 2, 0]


def test_equally_frequent_tokens_keep_their_order() -> None:
    bands = Bands(torch.full((40,), 7), eos=39)
    assert bands.band_of_token.tolist() == [1] * 10 + [2] * 29 + [0]


def test_sums_of_rows() -> None:
    bands = Bands(torch.tensor([5, 0, 4]), eos=0)
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    assert bands.sum(values).tolist() == [[1.0, 2.0], [5.0, 6.0], [3.0, 4.0]]
