"""Whether a model is as often right as it says."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BINS = 15


class Bin(NamedTuple):
    """Predictions of about the same probability; means are 0 where there are none.

    Attributes:
        size: number of them.
        confidence: mean probability.
        accuracy: share that was right.
    """

    size: int
    confidence: float
    accuracy: float


class Calibration:
    """Counts of predictions in ``BINS`` bins of equal width, by their probability."""

    def __init__(self) -> None:
        self._count, self._right = (torch.zeros(BINS, dtype=torch.long) for _ in range(2))
        self._confidence = torch.zeros(BINS, dtype=torch.float64)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Add predictions. Shape: (N,) probabilities, (N,) bool."""
        # Rounding may leave a probability a little above one.
        bins = (confidence * BINS).long().clamp(0, BINS - 1)
        self._count += bins.bincount(minlength=BINS)
        self._right += bins[right].bincount(minlength=BINS)
        self._confidence.index_add_(0, bins, confidence.double())

    def bins(self) -> list[Bin]:
        """All ``BINS`` of them."""
        several = self._count.clamp(min=1)
        columns = (self._count, self._confidence / several, self._right / several)
        return [Bin(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    @property
    def confidence(self) -> float:
        """Mean probability of what was predicted; 0 of nothing."""
        return float(self._confidence.sum()) / max(1, int(self._count.sum()))

    @property
    def error(self) -> float:
        """Expected calibration error: mean over predictions of |accuracy - confidence| of their bin."""
        total = max(1, int(self._count.sum()))
        return sum(each.size * abs(each.accuracy - each.confidence) for each in self.bins()) / total
