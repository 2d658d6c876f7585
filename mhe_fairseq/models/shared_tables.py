"""Tables of a model that are one tensor under several names."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def with_embedding(weights: Mapping[str, Tensor], old: Tensor, new: Tensor) -> dict[str, Tensor]:
    """Weights with another embedding under each of its names. Shape: (V, d), (V, d)."""
    return {key: new if same(value, old) else value for key, value in weights.items()}


def same(one: Tensor | None, other: Tensor | None) -> bool:
    """Both are one tensor of a model: the same memory or, where a file has two of it, as fairseq's mean of
    checkpoints has, the same numbers."""
    if one is None or other is None or one.shape != other.shape:
        return False
    return one.data_ptr() == other.data_ptr() or torch.equal(one, other)
