"""Rows of groups are read and written where they are."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.heads.group_blocks import Block
from mhe_fairseq.heads.layout import Layout

#: Of three groups of two slots, tokens of a dictionary of five, and a hole.
SLOTS = torch.tensor([4, 0, 2, -1, 1, 3])


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.arange(10.0).view(5, 2)


def test_rows_of_tokens_are_gathered_in_turn(weight: torch.Tensor) -> None:
    layout = Layout(3, 2, SLOTS)
    assert not layout.is_in_place
    found = [rows.clone() for rows in layout.read(weight, [0, 2], torch.float64)]
    assert [rows.tolist() for rows in found] == [[[8, 9], [0, 1]], [[2, 3], [6, 7]]]
    assert {rows.dtype for rows in found} == {torch.float64}
    each = layout.read_each(weight, torch.tensor([2, 0, 2]), torch.float32)
    assert each.tolist() == [[[2, 3], [6, 7]], [[8, 9], [0, 1]], [[2, 3], [6, 7]]]


def test_rows_of_a_weight_by_slot_are_views() -> None:
    layout, weight = Layout(3, 2), torch.arange(12.0).view(3, 2, 2)
    assert layout.is_in_place
    for group, rows in zip([1, 2], layout.read(weight, [1, 2], weight.dtype), strict=True):
        assert rows.data_ptr() == weight[group].data_ptr()


@pytest.mark.parametrize("groups", [[0, 1], [1, 2], [0, 2], [1]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_at_tokens_alone(
    weight: torch.Tensor, groups: list[int], dtype: torch.dtype
) -> None:
    layout, before = Layout(3, 2, SLOTS), weight.clone()
    left = torch.tensor([[1.0, 2.0] for _ in groups], dtype=dtype)
    right = torch.tensor([[10.0 * group, 1.0] for group in groups], dtype=dtype)
    layout.write_products(weight, Block(groups, slice(0, len(groups)), [1] * len(groups)), left, right)
    for group, tokens in enumerate(SLOTS.view(3, 2).tolist()):
        for digit, token in enumerate(tokens):
            if token >= 0:
                factor = digit + 1
                new = torch.tensor([10.0 * group * factor, factor])
                assert torch.equal(weight[token], new if group in groups else before[token])


def test_zeros_are_written_to_the_tokens_of_a_group(weight: torch.Tensor) -> None:
    Layout(3, 2, SLOTS).zero(weight, 1)
    assert (weight == 0).all(dim=1).tolist() == [False, False, True, False, False]
