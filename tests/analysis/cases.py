"""Small random distributions over the tokens of small codebooks with holes."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook

counts = st.sampled_from([0, 1, 2, 9])
seeds = st.integers(0, 99)


@st.composite
def codebooks(draw: st.DrawFn) -> Codebook:
    """One to three digits, tokens in any slots, as many holes as can be."""
    lengths = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    size = math.prod(lengths)
    slots = draw(st.permutations(range(size)))
    return Codebook(lengths, torch.tensor(slots[: draw(st.integers(1, size))]))


def batch(count: int, size: int, seed: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities (N, V), some far apart, and targets (N,)."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, size, generator=generator)
    return logits.log_softmax(-1), torch.randint(size, (count,), generator=generator)
