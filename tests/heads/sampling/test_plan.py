"""Which rows meet which groups, in chunks; and groups' rows of a table, in place or gathered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.heads.sampling.plan import GroupRows, Plan, chunks_of, consecutive

#: Two of three groups lie together in the table.
ROWS = GroupRows(torch.tensor([4, 5, 6, 0, 2, 1, 3]), [0, 3, 5, 7], [4, -1, -1])


def test_groups_of_consecutive_tokens_are_known() -> None:
    assert consecutive(ROWS.tokens, ROWS.starts) == ROWS.first
    # In falling order, or from the end of one group to the start of the next, is not together.
    assert consecutive(torch.tensor([1, 0, 2, 3]), [0, 2, 4]) == [-1, 2]
    assert consecutive(torch.tensor([0, 3, 4, 1, 2]), [0, 2, 5]) == [-1, -1]
    assert consecutive(torch.tensor([3, 0, 1, 2]), [0, 1, 4]) == [3, 0]


@pytest.mark.parametrize("group", [0, 1, 2])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_a_group_are_read_and_added_to(group: int, dtype: torch.dtype) -> None:
    table = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tokens = ROWS.tokens[ROWS.starts[group] : ROWS.starts[group + 1]]
    rows = ROWS.read(table, group)
    torch.testing.assert_close(rows, table[tokens])
    assert (rows.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()) is (group == 0)
    left, right = torch.randn(4, len(tokens), dtype=dtype), torch.randn(4, 3, dtype=dtype)
    expected = table.clone()
    expected[tokens] += (left.T @ right).double()
    ROWS.add_product(table, group, left, right)
    torch.testing.assert_close(table, expected)


@given(
    groups=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 2)), min_size=1, max_size=12),
    most=st.integers(1, 12),
)
def test_chunks_cover_all_pairs_in_order(groups: list[tuple[int, int]], most: int) -> None:
    pairs, sizes = [count for count, _ in groups], [size for _, size in groups]
    homes = [count // 2 for count in pairs]
    chunks = chunks_of(pairs, homes, sizes, most)
    segments = [segment for chunk in chunks for segment in chunk.segments]
    assert [segment.group for segment in segments] == [g for g, count in enumerate(pairs) if count]
    end = home_end = 0
    for chunk in chunks:
        assert chunk.begin == end and chunk.home_begin == home_end
        for group, begin, last in chunk.segments:
            assert begin == end and last - begin == pairs[group] and sizes[group] == chunk.size
            end, home_end = last, home_end + homes[group]
        assert chunk.end == end and chunk.home_end == home_end
        assert len(chunk.segments) == 1 or chunk.end - chunk.begin <= most
    assert end == sum(pairs) and home_end == sum(homes)


def test_a_plan_finds_every_target_in_the_logits_of_its_chunk() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([2, 2, 3, 3, 3])
    gold = torch.tensor([4, 0, 1, 1, 3, 4])
    place = torch.tensor([2, 0, 1, 0, 1, 0])
    meets = torch.rand(5, 6, generator=generator) < 0.5
    meets[gold, torch.arange(6)] = True
    plan = Plan.of(meets, gold, place, sizes)
    assert plan.rows.tolist() == [row for group in range(5) for row in range(6) if meets[group, row]]
    assert plan.scored.tolist() == (meets * sizes.unsqueeze(1)).sum(dim=0).tolist()
    # Cells that say which row, group and place they are of.
    found = []
    for chunk in plan.chunks:
        rows, groups = plan.rows[chunk.pairs], plan.groups[chunk.pairs]
        cells = [(r, g, p) for r, g in zip(rows, groups, strict=True) for p in range(chunk.size)]
        found += [tuple(map(int, cells[at])) for at in plan.home_cells[chunk.targets]]
    assert sorted(found) == sorted(zip(range(6), gold.tolist(), place.tolist(), strict=True))
    assert plan.rows[plan.home].tolist() == [row for row, _, _ in found]
    x = torch.randn(6, 2, generator=generator)
    for chunk in plan.chunks:
        torch.testing.assert_close(plan.features(x, chunk), x[plan.rows[chunk.pairs]])


def test_no_rows_make_no_chunks() -> None:
    none = torch.zeros(0, dtype=torch.long)
    plan = Plan.of(torch.zeros(3, 0, dtype=torch.bool), none, none, torch.tensor([1, 2, 3]))
    assert plan.chunks == [] and len(plan.rows) == len(plan.home_cells) == 0
