"""Rows of a new dictionary's tokens, from those of an old one's."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_fairseq.coding.symbols import Origins
from mhe_fairseq.heads.base import wide


def inherited(table: Tensor, origins: Origins, seed: int) -> Tensor:
    """A row of each new token: its symbol's own; else the mean of its pieces' rows; else the mean row, plus
    noise of the table's spread.

    Args:
        table: (V, ...) rows of the old tokens, in order.
        origins: of the new tokens.
        seed: of the noise.

    Returns:
        (V', ...) of the table's type.
    """
    rows = table.new_empty(len(origins.old), *table.shape[1:])
    rows[origins.kept] = table[origins.old[origins.kept]]
    rows[origins.new] = made_up(table, origins.new, origins, seed)
    return rows


def made_up(table: Tensor, tokens: Tensor, origins: Origins, seed: int) -> Tensor:
    """``inherited`` of some tokens, all of them new. Shape: (V, ...), (N,) -> (N, ...)."""
    rows_of = wide(table)
    rows = rows_of.new_empty(len(tokens), *table.shape[1:])
    unknown = []
    for place, token in enumerate(tokens.tolist()):
        pieces = origins.pieces.get(token)
        if pieces is None:
            unknown.append(place)
        else:
            rows[place] = rows_of[pieces].mean(dim=0)
    if unknown:
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(len(unknown), *table.shape[1:], generator=generator).to(rows)
        rows[unknown] = rows_of.mean(dim=0) + rows_of.std(dim=0, correction=0) * noise
    return rows.to(table.dtype)


def moved_values(
    table: Tensor,
    place: Tensor,
    values: tuple[Tensor, Tensor],
    size: int,
    origins: Origins,
    seed: int,
) -> Tensor:
    """Rows of digits, or of groups, as the new codebook numbers them.

    A value keeps its row while it has a token that stays. A value that has new tokens only begins with the
    mean of what these would have as tokens whose row is that of their value.

    Args:
        table: (M, ...) rows of the old values.
        place: (M,) long: numbers of the same values among the new ones.
        values: (V,) the old tokens' values among the old ones, and (V',) the new tokens' among the new ones.
        size: M', new values.
        origins: of the new tokens.
        seed: of the noise.

    Returns:
        (M', ...); zeros for new values without tokens.
    """
    made = table.new_zeros(size, *table.shape[1:])
    made[place] = table
    old, new = values
    stays = torch.zeros(size, dtype=torch.bool)
    stays[new[origins.kept]] = True
    tokens = origins.new[~stays[new[origins.new]]]
    if len(tokens):
        rows = wide(made_up(table[old], tokens, origins, seed))
        count = torch.bincount(new[tokens], minlength=size)
        total = rows.new_zeros(made.shape).index_add_(0, new[tokens], rows)
        fresh = count > 0
        shape = (-1, *[1] * (total.dim() - 1))
        made[fresh] = (total[fresh] / count[fresh].view(shape)).to(table.dtype)
    return made
