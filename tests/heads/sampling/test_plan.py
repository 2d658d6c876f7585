"""Which rows meet which groups, in chunks; and groups' rows of a table, in place or gathered."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.heads.sampling.plan import Chunk, GroupRows, Plan, chunks_of, consecutive

#: Two of three groups lie together in the table.
ROWS = GroupRows(torch.tensor([4, 5, 6, 0, 2, 1, 3]), [0, 3, 5, 7], [4, -1, -1])


def test_groups_of_consecutive_tokens_are_known() -> None:
    assert consecutive(ROWS.tokens, ROWS.starts) == ROWS.first
    # In falling order, or from the end of one group to the start of the next, is not together.
    assert consecutive(torch.tensor([1, 0, 2, 3]), [0, 2, 4]) == [-1, 2]
    assert consecutive(torch.tensor([0, 3, 4, 1, 2]), [0, 2, 5]) == [-1, -1]
    assert consecutive(torch.tensor([3, 0, 1, 2]), [0, 1, 4]) == [3, 0]


def of_groups(groups: list[int], counts: list[int], size: int) -> Chunk:
    return Chunk(size, 0, sum(counts), 0, 0, groups, counts)


@pytest.mark.parametrize(
    ("groups", "size", "is_in_place"),
    [([0], 3, True), ([1], 2, False), ([1, 2], 2, False), ([1, 3], 2, False), ([4, 5], 1, True)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rows_of_groups_are_read_and_added_to(
    groups: list[int], size: int, is_in_place: bool, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Groups 0, 4 and 5 lie together in the table.
    tokens = torch.tensor([4, 5, 6, 0, 2, 9, 7, 1, 3, 8, 10])
    rows = GroupRows(tokens, [0, 3, 5, 7, 9, 10, 11], [4, -1, -1, -1, 8, 10])
    table = torch.randn(11, 3, dtype=torch.float64, generator=generator)
    chunk = of_groups(groups, [4, 2][: len(groups)], size)
    own = [tokens[rows.starts[group] : rows.starts[group + 1]] for group in groups]
    read = rows.read(table, chunk, table.dtype)
    for found, of in zip(read, own, strict=True):
        torch.testing.assert_close(found, table[of])
        assert (found.untyped_storage().data_ptr() == table.untyped_storage().data_ptr()) is is_in_place
    assert all(each.dtype == dtype for each in rows.read(table, chunk, dtype))
    left = torch.randn(chunk.end, size, dtype=dtype, generator=generator)
    right = torch.randn(chunk.end, 3, dtype=dtype, generator=generator)
    expected, begin = table.clone(), 0
    for of, count in zip(own, chunk.counts, strict=True):
        part = slice(begin, begin + count)
        expected[of] += (left[part].T @ right[part]).double()
        begin += count
    rows.add_products(table, chunk, left, right)
    torch.testing.assert_close(table, expected)


def test_logits_are_scaled_by_a_factor_of_each_token() -> None:
    logits, factors = torch.ones(3, 2), torch.arange(7.0)
    ROWS.scale_(logits, factors, of_groups([1, 2], [1, 2], 2))
    assert logits.tolist() == [[3.0, 4.0], [5.0, 6.0], [5.0, 6.0]]


@given(
    groups=st.lists(st.tuples(st.integers(0, 6), st.integers(1, 2)), min_size=1, max_size=12),
    count=st.integers(1, 24),
)
def test_chunks_cover_all_pairs_in_order(groups: list[tuple[int, int]], count: int) -> None:
    pairs, sizes = [each for each, _ in groups], [size for _, size in groups]
    homes = [each // 2 for each in pairs]
    chunks = chunks_of(pairs, homes, sizes, count)
    assert [group for chunk in chunks for group in chunk.groups] == [
        g for g, each in enumerate(pairs) if each
    ]
    end = home_end = 0
    for chunk in chunks:
        assert chunk.begin == end and chunk.home_begin == home_end
        assert chunk.counts == [pairs[group] for group in chunk.groups]
        assert all(sizes[group] == chunk.size for group in chunk.groups)
        end, home_end = end + sum(chunk.counts), home_end + sum(homes[group] for group in chunk.groups)
        assert chunk.end == end and chunk.home_end == home_end
        assert len(chunk.groups) == 1 or chunk.end - chunk.begin <= count // 2
        assert len(chunk.groups) == 1 or len(chunk.groups) * chunk.size <= count
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
