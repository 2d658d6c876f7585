"""Drawing groups: probabilities that add up, and samples that follow them."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sampling.group_sample import (
    checked_frequencies,
    expected_share,
    inclusion_probabilities,
    sample_groups,
)


@given(
    share=st.lists(st.floats(1e-3, 1.0), min_size=2, max_size=20),
    data=st.data(),
)
def test_inclusion_probabilities(share: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(share) - 1))
    shares = torch.tensor(share, dtype=torch.float64)
    inclusion = inclusion_probabilities(shares, count)
    assert math.isclose(float(inclusion.sum()), count, rel_tol=1e-9)
    assert bool((inclusion > 0).all()) and bool((inclusion <= 1).all())
    free = inclusion < 1
    ratio = inclusion[free] / shares[free]
    torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio))
    # A group is sure only if its share of what is left would be more than one group's.
    assert float(shares[~free].min() if (~free).any() else 1e9) >= float(shares[free].max()) * (1 - 1e-9)


@pytest.mark.parametrize("groups", [1, 3, 5])
def test_samples_are_of_different_groups_and_of_the_right_frequency(groups: int) -> None:
    inclusion = inclusion_probabilities(torch.tensor([5.0, 1, 1, 0.5, 2, 0.1, 0.4]).double(), groups)
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(7, dtype=torch.float64)
    for _ in range(4000):
        (sample,) = map(torch.from_numpy, sample_groups(inclusion.numpy(), generator))
        assert sample.numel() == groups == sample.unique().numel()
        seen[sample] += 1 / 4000
    torch.testing.assert_close(seen, inclusion, atol=0.03, rtol=0)


def test_the_parts_of_a_batch_each_follow_the_probabilities_and_together_meet_more_groups() -> None:
    parts = 4
    inclusion = inclusion_probabilities(
        torch.rand(20, generator=torch.Generator().manual_seed(1)).double(), 3
    )
    generator = torch.Generator().manual_seed(0)
    seen = torch.zeros(parts, 20, dtype=torch.float64)
    for _ in range(2000):
        samples = [torch.from_numpy(each) for each in sample_groups(inclusion.numpy(), generator, parts)]
        for part, sample in enumerate(samples):
            assert len(sample) == 3
            seen[part, sample] += 1 / 2000
        # Spread evenly, 12 draws are of 12 groups, but for those that are longer than the spread, 1/4.
        assert len(torch.cat(samples).unique()) >= 12 - 3 * int((inclusion > 0.25).sum())
        met = torch.cat(samples).bincount(minlength=20)
        assert bool((met >= (parts * inclusion).floor()).all())
        assert bool((met <= (parts * inclusion).ceil()).all())
    torch.testing.assert_close(seen, inclusion.expand(parts, -1), atol=0.045, rtol=0)


def test_a_groups_share_is_half_of_its_text_and_half_of_its_tokens() -> None:
    group_of_token, sizes = torch.tensor([0, 1, 1, 0, 2]), torch.tensor([2, 2, 1])
    found = expected_share(group_of_token, sizes, torch.tensor([1.0, 0.0, 5.0, 1.0, 3.0]).double())
    expected = [0.5 * text + 0.5 * tokens for text, tokens in ((0.2, 0.4), (0.5, 0.4), (0.3, 0.2))]
    torch.testing.assert_close(found, torch.tensor(expected).double())
    # Without frequencies the first tokens are the frequent ones.
    found = expected_share(torch.tensor([0, 0, 1, 1]), torch.tensor([2, 2]))
    zipf = [1 / 4, 1 / 5, 1 / 6, 1 / 7]
    assert math.isclose(float(found[0]), 0.5 * (zipf[0] + zipf[1]) / sum(zipf) + 0.25)


@pytest.mark.parametrize(
    "frequencies, said",
    [
        ([1.0, 2.0], "a number for each of the 3 tokens; got shape \\(2,\\)"),
        ([1.0, -2.0, 1.0], "from 0 on, and not all 0; got -2 to 1"),
        ([0.0, 0.0, 0.0], "not all 0; got 0 to 0"),
        ([1.0, float("nan"), 1.0], "got nan to nan"),
        ([1.0, float("inf"), 1.0], "got 1 to inf"),
    ],
)
def test_frequencies_that_are_none(frequencies: list[float], said: str) -> None:
    with pytest.raises(MHEError, match=said):
        checked_frequencies(torch.tensor(frequencies), 3)
