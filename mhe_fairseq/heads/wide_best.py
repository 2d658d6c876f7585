"""What a search needs of logits that are as wide as the vocabulary: the best of them, and their sum."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.heads.base import Candidates, wide
from mhe_fairseq.heads.reading import Reading
from mhe_fairseq.heads.wide_product import wide_linear

if TYPE_CHECKING:
    from mhe_fairseq.heads.softmax import SoftmaxHead

#: Logits of which the largest is looked up at once. With 16 or 32 it takes longer, with 128 as long.
BLOCK = 64

#: At most about this many logits are held, but no fewer than those of so many rows: a product of few rows
#: takes longer for each of them.
_HELD, _ROWS = 2**24, 256


def best_of(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """``logits.topk(k, dim=1)``. The k largest are in the k blocks with the largest maxima, and these are
    found in one pass over the numbers. Shape: (N, V) -> (N, k) descending, (N, k) long."""
    vocab = logits.size(1)
    blocks = vocab // BLOCK
    if blocks <= 2 * k:
        best, places = logits.topk(k, dim=1)
        return best, places
    end = blocks * BLOCK
    which = logits[:, :end].unflatten(1, (blocks, BLOCK)).amax(dim=2).topk(k, dim=1, sorted=False).indices
    places = which.unsqueeze(2) * BLOCK + torch.arange(BLOCK, device=logits.device)
    rest = torch.arange(end, vocab, device=logits.device).expand(len(logits), -1)
    places = torch.cat([places.flatten(1), rest], dim=1)
    best, which = logits.gather(1, places).topk(k, dim=1)
    return best, places.gather(1, which)


def log_sum_of(logits: Tensor, largest: Tensor) -> Tensor:
    """``logits.logsumexp(dim=1, keepdim=True)``; logits are written over.

    Shape: (N, V), (N, 1) their maxima -> (N, 1).
    """
    return logits.sub_(largest).exp_().sum(dim=1, keepdim=True).log_().add_(largest)


class SoftmaxReading(Reading):
    """Features (N, d) as a soft-max reads them: its normaliser is computed once."""

    head: SoftmaxHead

    def candidates(self, k: int, tokens: Tensor) -> Candidates:
        best, found, given, self.log_z = self._in_pieces(k, tokens)
        return Candidates(best - self.log_z, found, given - self.log_z)

    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """``OutputHead.topk``."""
        found = self.candidates(k, self._nothing)
        return found.scores, found.tokens

    @torch.no_grad()
    def log_prob_of(self, tokens: Tensor) -> Tensor:
        features, weight = self._scored
        rows = wide(F.embedding(tokens.expand(len(features), -1), weight))
        return torch.einsum("nd,ncd->nc", wide(features), rows) - self.log_z

    @cached_property
    def log_z(self) -> Tensor:
        """(N, 1)."""
        return self._in_pieces(1, self._nothing)[3]

    @property
    def _nothing(self) -> Tensor:
        return torch.zeros(0, dtype=torch.long, device=self.features.device)

    @cached_property
    def _scored(self) -> tuple[Tensor, Tensor]:
        return self.head.scored(self.features)

    @torch.no_grad()
    def _in_pieces(self, k: int, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(N, k) the best logits, (N, k) their tokens, (N, C) the logits of ``tokens``, (N, 1) log Z."""
        features, weight = self._scored
        rows = max(_ROWS, _HELD // len(weight))
        pieces = [self._piece(x, weight, k, tokens) for x in features.split(rows)]
        best, found, given, log_z = (torch.cat(each) for each in zip(*pieces, strict=True))
        return best, found, given, log_z

    @staticmethod
    def _piece(x: Tensor, weight: Tensor, k: int, tokens: Tensor) -> tuple[Tensor, ...]:
        logits = wide_linear(x, weight)
        best, found = best_of(logits, k)
        given = logits[:, tokens]
        return best, found, given, log_sum_of(logits, best[:, :1])
