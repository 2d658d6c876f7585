"""Figures of several seeds."""

from __future__ import annotations

from statistics import fmean


def spread(values: list[float]) -> float | list[float]:
    """The figure of one seed; of several the mean and half of the range, as a record has it."""
    if len(values) == 1:
        return values[0]
    return [fmean(values), (max(values) - min(values)) / 2]
