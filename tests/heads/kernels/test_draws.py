"""Groups drawn by the kernel are those that torch's operators draw from the same random numbers."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.heads.sampling.predicted import ANYWAY, chances, random_numbers, systematic_rows
from tests.drawn import examples
from tests.heads.kernels.both import PHASES

if TYPE_CHECKING:
    from mhe_fairseq.heads.kernels.draws import Groups


def made(groups: int, length: int, seed: int) -> tuple[Groups, torch.Generator]:
    from mhe_fairseq.heads.kernels.draws import Groups

    generator = torch.Generator().manual_seed(seed)
    prior = torch.rand(groups, generator=generator, dtype=torch.float64) ** 6 + 1e-12
    of_token = torch.randint(groups, (groups * 3,), generator=generator)
    slots = of_token * length + torch.randint(length, (groups * 3,), generator=generator)
    return Groups(prior / prior.sum(), of_token, slots, length, ANYWAY), generator


@given(
    groups=st.integers(2, 40),
    share=st.floats(0, 1),
    rows=st.sampled_from([1, 2, 9]),
    sharpness=st.sampled_from([0.0, 1.0, 5.0, 30.0]),
    seed=st.integers(0, 999),
)
@examples(25, phases=PHASES)
def test_the_same_groups_as_torchs(groups: int, share: float, rows: int, sharpness: float, seed: int) -> None:
    from mhe_fairseq.heads.kernels.draws import draw_rows

    of, generator = made(groups, 7, seed)
    count = 1 + int(share * (groups - 2))
    log_share = (sharpness * torch.randn(rows, groups, generator=generator)).log_softmax(dim=1)
    target = torch.randint(len(of.of_token), (rows,), generator=generator)
    inclusion = chances(log_share, of.prior, count)
    expected = systematic_rows(inclusion, count, torch.Generator().manual_seed(seed))
    numbers = random_numbers(rows, groups, log_share.device, torch.Generator().manual_seed(seed))
    found = draw_rows(of, log_share, target, *numbers, count)
    gold = of.of_token[target]
    assert torch.equal(found.groups, torch.cat([gold.unsqueeze(1), expected], dim=1))
    assert torch.equal(found.slots[:, 0], of.slots[target])
    assert torch.equal(found.slots[:, 1:], expected * of.length)
    weight = -inclusion.gather(1, expected).log().float()
    weight.masked_fill_(expected == gold.unsqueeze(1), -math.inf)
    assert torch.equal(found.log_weight[:, 0], torch.zeros(rows))
    torch.testing.assert_close(found.log_weight[:, 1:], weight)


def test_what_is_certain_is_always_drawn() -> None:
    from mhe_fairseq.heads.kernels.draws import draw_rows

    of, generator = made(12, 5, 1)
    log_share = torch.full((20, 12), -30.0)
    log_share[:, [3, 7]] = math.log(0.5)
    other = (of.of_token != 3) & (of.of_token != 7)
    target = other.nonzero()[0].repeat(20)
    numbers = random_numbers(20, 12, log_share.device, generator)
    found = draw_rows(of, log_share, target, *numbers, 4)
    for group in (3, 7):
        drawn = found.groups[:, 1:] == group
        assert bool(drawn.sum(dim=1).eq(1).all())
        assert float(found.log_weight[:, 1:][drawn].abs().max()) == 0
    assert all(len(set(row)) == 4 for row in found.groups[:, 1:].tolist())


@pytest.mark.parametrize("count", [1, 6])
def test_the_last_point_hits_a_group(count: int) -> None:
    """Without a shift the last point is where all groups end."""
    from mhe_fairseq.heads.kernels.draws import draw_rows

    of, generator = made(7, 3, 2)
    log_share = torch.randn(5, 7, generator=generator).log_softmax(dim=1)
    order, target = torch.randperm(7, generator=generator), torch.zeros(5, dtype=torch.long)
    found = draw_rows(of, log_share, target, order, torch.zeros(5, dtype=torch.float64), count)
    assert bool((found.groups >= 0).all()) and bool((found.groups < 7).all())
    assert all(len(set(row)) == count for row in found.groups[:, 1:].tolist())
