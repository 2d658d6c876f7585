"""A product's or mixture's best tokens for a search: by kernels, or in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.heads.base import Candidates
from mhe_fairseq.heads.product import search_kernels as kernels
from mhe_fairseq.heads.reading import Reading

if TYPE_CHECKING:
    from mhe_fairseq.heads.product.head import ProductHead


class ProductReading(Reading):
    """Features (N, d) as a product of digits reads them."""

    head: ProductHead

    @torch.no_grad()
    def best_by_kernels(self, k: int, tokens: Tensor) -> Candidates | None:
        """``candidates`` by kernels; None: they do not serve."""
        n, device = len(self.features), self.features.device
        if not kernels.serves(self.head, self.features, k):
            return None
        best = torch.empty(n, k, device=device)
        found, given = torch.empty_like(best, dtype=torch.long), best.new_empty(n, len(tokens))
        nothing = torch.zeros(0, dtype=torch.long, device=device)
        if not kernels.best(self.head, self.features, nothing, tokens, best, found, given):
            return None
        best, place = best.topk(k, dim=1)
        return Candidates(best, found.gather(1, place), given)

    @torch.no_grad()
    def begin(self, log_probs: Tensor, table: Tensor, special: Tensor) -> None:
        count = len(special)
        best, found = log_probs[:, count:], table[:, count:]
        if kernels.serves(self.head, self.features, best.size(1)) and kernels.best(
            self.head, self.features, special, special, best, found, log_probs[:, :count]
        ):
            return
        super().begin(log_probs, table, special)
