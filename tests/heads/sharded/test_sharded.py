"""Heads whose table is split over ranks equal whole ones: 2 and 3 processes, gloo."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sharded.shards import Shard, normal_blocks
from tests.heads.sharded.cases import all_cases
from tests.heads.sharded.run import run_cases


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """All cases, run once for each number of ranks."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    return run_cases("tests.heads.sharded.cases", request.param, folder)


@pytest.mark.slow
@pytest.mark.parametrize("name", all_cases())
def test_on_ranks(said: dict[str, list[str]], name: str) -> None:
    for rank, text in enumerate(said[name]):
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
