"""Where the rows of a group of tokens are in a weight, and how they are read from it and written to it."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mhe_fairseq.heads.few_rows import transposed_product
from mhe_fairseq.heads.group_blocks import Block, products_of_groups


class Layout:
    """Where the rows of a group are in a weight.

    A weight (G, L, d) holds group g in ``weight[g]``. With ``token_of_slot`` the weight is (V, d), indexed
    by token, such as a tied embedding; slots without a token read some token's row, and write nothing.

    Args:
        groups: G.
        length: L.
        token_of_slot: (G * L,) long, -1 at holes, or None.
    """

    def __init__(self, groups: int, length: int, token_of_slot: Tensor | None = None) -> None:
        self.groups = groups
        self.length = length
        self._tokens: Tensor | None = None
        if token_of_slot is not None:
            real = token_of_slot.view(groups, length) >= 0
            self._tokens = token_of_slot.view(groups, length).clamp(min=0)
            self._is_token = real
            self._own = token_of_slot[token_of_slot >= 0]
            sizes = real.sum(dim=1)
            self._starts: list[int] = [0, *sizes.cumsum(0).tolist()]

    @property
    def is_in_place(self) -> bool:
        """Groups are read and written where they are: the rows of each lie together."""
        return self._tokens is None

    def to(self, device: torch.device) -> Layout:
        """Move the indices, in place; no work where they are there already."""
        if self._tokens is not None and self._tokens.device != device:
            self._tokens, self._own = self._tokens.to(device), self._own.to(device)
            self._is_token = self._is_token.to(device)
        return self

    def read(self, weight: Tensor, groups: list[int], dtype: torch.dtype) -> Iterator[Tensor]:
        """The rows of some groups, one after the other, (L, d) of ``dtype`` each.

        Where they do not lie together they are gathered into the same memory, which stays in a cache: rows of
        a group are to be used before the next ones are asked for.
        """
        if self._tokens is None:
            for group in groups:
                yield weight[group].to(dtype)
            return
        rows = weight.new_empty(self.length, weight.size(1))
        for group in groups:
            torch.index_select(weight, 0, self._tokens[group], out=rows)
            yield rows if rows.dtype == dtype else rows.to(dtype)

    def read_each(self, weight: Tensor, groups: Tensor, dtype: torch.dtype) -> Tensor:
        """The rows of every group, (p,) -> (p, L, d) of ``dtype``."""
        if self._tokens is None:
            return weight.index_select(0, groups).to(dtype)
        tokens = self._tokens.index_select(0, groups)
        return weight.index_select(0, tokens.flatten()).unflatten(0, tokens.shape).to(dtype)

    def read_all(self, weight: Tensor) -> Tensor:
        """(G * L, d) or (V, d): the whole weight as a matrix, see ``by_slot``."""
        return weight.flatten(0, 1) if self._tokens is None else weight

    def by_slot(self, logits: Tensor) -> Tensor:
        """Products with ``read_all`` -> (..., G, L)."""
        if self._tokens is not None:
            logits = logits.index_select(-1, self._tokens.flatten())
        return logits.unflatten(-1, (self.groups, self.length))

    def write_products(self, grad: Tensor, block: Block, left: Tensor, right: Tensor) -> None:
        """Write left^T @ right of the pairs of each group where ``read`` reads from.

        Shape: of all pairs of the block (m, L), (m, d).
        """
        if self._tokens is None:
            parts = zip(block.groups, left.split(block.counts), right.split(block.counts), strict=True)
            for group, each, other in parts:
                if grad.dtype == left.dtype:
                    transposed_product(each, other, out=grad[group])
                else:
                    grad[group].copy_(each.T @ other)
            return
        products = products_of_groups(left, right, block.counts)
        tokens = _of_groups(self._tokens, block.groups)
        if any(self._starts[group + 1] - self._starts[group] < self.length for group in block.groups):
            real = _of_groups(self._is_token, block.groups).nonzero().squeeze(1)
            tokens, products = tokens.index_select(0, real), products.index_select(0, real)
        grad.index_copy_(0, tokens, products.to(grad.dtype))

    def add_products(self, grad: Tensor, groups: Tensor, left: Tensor, right: Tensor) -> None:
        """Add outer products of left (p, L) and right (p, d) where ``read_each`` reads; groups may repeat."""
        blocks = (left.unsqueeze(2) * right.unsqueeze(1)).to(grad.dtype)
        if self._tokens is None:
            grad.index_add_(0, groups, blocks)
        else:
            real = self._is_token.index_select(0, groups)
            grad.index_add_(0, self._tokens.index_select(0, groups)[real], blocks[real])

    def zero(self, grad: Tensor, group: int) -> None:
        """Write zeros."""
        if self._tokens is None:
            grad[group].zero_()
        else:
            grad.index_fill_(0, self._own[self._starts[group] : self._starts[group + 1]], 0.0)


def _of_groups(of_slot: Tensor, groups: list[int]) -> Tensor:
    """Of the slots of some groups, rising, one after the other. Shape: (G, L) -> (p * L,)."""
    first, last = groups[0], groups[-1]
    if last - first + 1 == len(groups):
        return of_slot[first : last + 1].flatten()
    return torch.cat([of_slot[group] for group in groups])
