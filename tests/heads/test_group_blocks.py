"""Which groups are done together."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.heads import group_blocks
from mhe_fairseq.heads.group_blocks import Block, blocks_of
from mhe_fairseq.heads.light_groups import Runs

#: Groups 4 and 6 are done elsewhere, and so are their pairs 8 and 9.
RUNS: Runs = [(0, 0, 3), (2, 3, 4), (3, 4, 8), (5, 9, 12), (7, 12, 14)]


def test_as_many_as_stay_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_blocks, "_BLOCK", 50)
    x = torch.zeros(9, 10)
    # Of features five rows at a time, or one group that has more of them.
    assert blocks_of(RUNS, x, 0) == [
        Block([0, 2], slice(0, 4), [3, 1]),
        Block([3], slice(4, 8), [4]),
        Block([5, 7], slice(9, 14), [3, 2]),
    ]
    # Of groups of three rows that are gathered one at a time.
    assert [block.groups for block in blocks_of(RUNS, x, 3)] == [[0], [2], [3], [5], [7]]
    assert blocks_of([], x, 3) == []


def test_on_an_accelerator_each_alone() -> None:
    blocks = blocks_of(RUNS, torch.zeros(9, 10, device="meta"), 3)
    assert [block.groups for block in blocks] == [[0], [2], [3], [5], [7]]
    assert [block.pairs for block in blocks] == [slice(begin, end) for _, begin, end in RUNS]


@given(
    counts=st.lists(st.integers(1, 5), max_size=12),
    gaps=st.lists(st.booleans(), min_size=12, max_size=12),
    rows=st.integers(0, 6),
    most=st.integers(0, 60),
)
def test_all_groups_are_in_a_block(counts: list[int], gaps: list[bool], rows: int, most: int) -> None:
    runs, begin = [], 0
    for group, count in enumerate(counts):
        begin += gaps[group]
        runs.append((group, begin, begin + count))
        begin += count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(group_blocks, "_BLOCK", most)
        blocks = blocks_of(runs, torch.zeros(1, 2), rows)
    found = []
    for block in blocks:
        place = block.pairs.start
        for group, count in zip(block.groups, block.counts, strict=True):
            found.append((group, place, place + count))
            place += count
        assert place == block.pairs.stop
        if len(block.groups) > 1:
            assert max(sum(block.counts), len(block.groups) * rows) * 2 <= most
    assert found == runs
