"""Targets that stand in the source sentence too: names, numbers, file names, what a translation copies."""

from __future__ import annotations

import torch
from torch import Tensor


class Copied:
    """Sums over those target tokens, kept for every token of the vocabulary.

    Args:
        size: V.

    Attributes:
        known: whether any batch told; only translations with one dictionary for both sides do.
        gold, correct: (V,) long, how often a token was such a target, and was the most probable token then.
        loss: (V,) float64, nats lost there.
    """

    def __init__(self, size: int) -> None:
        self.known = False
        self.gold, self.correct = (torch.zeros(size, dtype=torch.long) for _ in range(2))
        self.loss = torch.zeros(size, dtype=torch.float64)

    def update(self, target: Tensor, right: Tensor, loss: Tensor, in_source: Tensor) -> None:
        """Add positions. Shape: (N,) long, (N,) bool, (N,) float64, (N,) bool."""
        self.known = True
        self.gold += target[in_source].bincount(minlength=len(self.gold))
        self.correct += target[in_source & right].bincount(minlength=len(self.gold))
        self.loss.index_add_(0, target[in_source], loss[in_source])
