"""Which groups are done at once, and that it is where nothing is lost by it."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.heads.light_groups import split

RUNS = [(0, 0, 1), (2, 1, 4), (3, 4, 5), (5, 5, 7), (8, 7, 8)]


def test_groups_with_little_to_do_are_done_at_once() -> None:
    x, weight = torch.zeros(8, 512), torch.zeros(9, 16, 512)
    parts, others = split(RUNS, 16 * 512, x, weight)
    assert torch.cat(parts).tolist() == [0, 4, 5, 6, 7]
    assert max(len(part) for part in parts) * 16 * 512 <= 2**16
    assert others == [(2, 1, 4)]


def test_a_part_has_a_pair_at_least_and_all_parts_all_pairs() -> None:
    runs = [(group, group, group + 1) for group in range(130)]
    table = torch.zeros(130, 2**13)
    parts, others = split(runs, 2**13, torch.zeros(1, 1), table)
    assert [len(part) for part in parts] == [8] * 16 + [2] and others == []
    # No more at a time than a small table has.
    parts, _ = split(runs, 2**13, torch.zeros(1, 1), table[:3])
    assert [len(part) for part in parts] == [3] * 43 + [1]


@pytest.mark.parametrize(
    "runs, size, x, weight",
    [
        (RUNS[:3], 4, torch.float32, torch.float32),  # too few
        (RUNS, 2**15, torch.float32, torch.float32),  # none is light
        (RUNS, 4, torch.bfloat16, torch.float32),
        (RUNS, 4, torch.float32, torch.float16),
        ([], 4, torch.float32, torch.float32),
    ],
)
def test_others_are_left_to_the_loop(
    runs: list[tuple[int, int, int]], size: int, x: torch.dtype, weight: torch.dtype
) -> None:
    assert split(runs, size, torch.zeros(1, dtype=x), torch.zeros(1, dtype=weight)) == ([], runs)
