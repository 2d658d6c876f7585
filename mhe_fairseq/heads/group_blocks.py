"""Which groups are done together: what they need is gathered in one go, and stays in a cache."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.heads.light_groups import Runs

#: Numbers that are gathered for a block at most, of features and of rows of groups.
_BLOCK = 2**17


class Block(NamedTuple):
    """Groups that follow one another, whose pairs do too.

    Attributes:
        groups: rising.
        pairs: of all of them.
        counts: number of pairs of each.
    """

    groups: list[int]
    pairs: slice
    counts: list[int]


def blocks_of(runs: Runs, x: Tensor, rows: int) -> list[Block]:
    """Blocks of as many groups as stay in a cache, at least one.

    Not on the CPU it is one: a row may be in several pairs of a block, and elsewhere its gradient would be
    added up in any order.

    Args:
        runs: of the groups.
        x: features (N, d).
        rows: of a group that are gathered; 0 if they are read where they are.
    """
    most = _BLOCK // x.size(1) if x.device.type == "cpu" else 0
    blocks: list[Block] = []
    groups: list[int] = []
    counts: list[int] = []
    start = stop = 0
    for group, begin, end in runs:
        if groups and (begin != stop or end - start > most or (len(groups) + 1) * rows > most):
            blocks.append(Block(groups, slice(start, stop), counts))
            groups, counts = [], []
        if not groups:
            start = begin
        groups.append(group)
        counts.append(end - begin)
        stop = end
    if groups:
        blocks.append(Block(groups, slice(start, stop), counts))
    return blocks


def products_of_groups(left: Tensor, right: Tensor, counts: list[int]) -> Tensor:
    """left^T @ right of the pairs of each group, in their type, one group after the other.

    Shape: of all pairs (m, L), (m, d) -> (groups * L, d).
    """
    products = left.new_empty(len(counts) * left.size(1), right.size(1))
    parts = zip(left.split(counts), right.split(counts), products.split(left.size(1)), strict=True)
    for each, other, out in parts:
        torch.mm(each.T, other, out=out)
    return products
