"""Heads whose table is split over ranks equal whole ones: 2 and 3 processes, gloo."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sharded.shards import Shard, normal_blocks
from tests.heads.sharded.cases import all_cases
from tests.heads.sharded.run import run_cases


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], dict[str, list[str]]]:
    """All cases of a number of ranks, run once."""

    @functools.cache
    def cases_of(size: int) -> dict[str, list[str]]:
        return run_cases("tests.heads.sharded.cases", size, tmp_path_factory.mktemp("ranks"))

    return cases_of


@pytest.mark.slow
@pytest.mark.parametrize(("size", "name"), [(size, name) for size in (2, 3) for name in all_cases(size)])
def test_on_ranks(said: Callable[[int], dict[str, list[str]]], size: int, name: str) -> None:
    for rank, text in enumerate(said(size)[name]):
        assert not text, f"rank {rank}: {text}"


def test_groups_are_dealt_out_evenly() -> None:
    for size in range(1, 9):
        for groups in range(size, 40):
            bounds = Shard(0, size).bounds(groups)
            held = [b - a for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
            assert bounds[0] == 0 and bounds[-1] == groups and len(held) == size
            assert min(held) >= 1 and max(held) - min(held) <= 1


def test_without_ranks_there_is_no_shard() -> None:
    with pytest.raises(MHEError, match=r"not initialised.*call torch\.distributed\.init_process_group"):
        Shard.of()


@pytest.mark.parametrize("count", [1, 15, 16, 17, 63, 64, 65, 80, 128, 143, 144])
def test_normal_numbers_by_blocks_are_those_drawn_at_once(count: int) -> None:
    torch.manual_seed(1)
    at_once, after = torch.empty(count).normal_(0.0, 2.0), torch.rand(2)
    torch.manual_seed(1)
    blocks = list(normal_blocks(count, 2.0, size=64))
    assert torch.equal(torch.cat([numbers for _, numbers in blocks]), at_once)
    assert torch.equal(torch.rand(2), after)
    assert [begin for begin, _ in blocks] == [64 * i for i in range(len(blocks))]
