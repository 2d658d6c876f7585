"""Products of a few rows with a block of a large table that is read where it lies.

With few tokens for each of many groups, all time goes into reading and writing the table once. On some CPUs a
batch of products does that up to three times as fast as one product, and on none that we know more slowly;
where a block is small it takes longer to start. A block that was gathered is in a cache, and one product is
best.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Up to so many rows are few.
_FEW = 8

#: Numbers of a block from which on it is worth it.
_LARGE = 2**16


def product_with_rows(x: Tensor, rows: Tensor, out: Tensor, is_gathered: bool = False) -> None:
    """x @ rows^T. Shape: (m, d), (L, d), written to (m, L)."""
    parts = 1 if is_gathered else _parts(x, rows.shape, 8)
    if parts == 1:
        torch.mm(x, rows.T, out=out)
    else:
        out.copy_(torch.bmm(rows.unflatten(0, (parts, -1)), x.T.expand(parts, -1, -1)).flatten(0, 1).T)


def product(x: Tensor, rows: Tensor, out: Tensor, is_gathered: bool = False) -> None:
    """x @ rows. Shape: (m, L), (L, d), written to (m, d)."""
    parts = 1 if is_gathered else _parts(x, rows.shape, 8)
    if parts == 1:
        torch.mm(x, rows, out=out)
    else:
        left = x.unflatten(1, (parts, -1)).transpose(0, 1)
        torch.sum(torch.bmm(left, rows.unflatten(0, (parts, -1))), dim=0, out=out)


def transposed_product(left: Tensor, right: Tensor, out: Tensor) -> None:
    """left^T @ right. Shape: (m, L), (m, d), written to (L, d)."""
    parts = _parts(left, out.shape, 64)
    if parts == 1:
        torch.mm(left.T, right, out=out)
    elif len(left) == 1:
        torch.mul(left.T, right, out=out)
    else:
        left = left.T.unflatten(0, (parts, -1))
        torch.bmm(left, right.expand(parts, -1, -1), out=out.unflatten(0, (parts, -1)))


def _parts(few: Tensor, block: torch.Size, most: int) -> int:
    """In how many parts of its rows a block (L, d) is multiplied, 1: whole."""
    if few.device.type != "cpu" or len(few) > _FEW or few.dtype not in (torch.float32, torch.float64):
        return 1
    length = block[0]
    if block.numel() < _LARGE:
        return 1
    most = min(most, length // 8)
    return next((parts for parts in range(most, 1, -1) if length % parts == 0), 1)
