"""Which groups of tokens are in a batch's sample: unequal probabilities, without replacement."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import to_numpy


def inclusion_probabilities(share: Tensor, count: int) -> Tensor:
    """Probabilities that add up to ``count``, in proportion to ``share`` and at most 1.

    Shape: (L,) float64, all positive, L > count -> (L,) float64.
    """
    inclusion = torch.zeros_like(share)
    free = torch.ones_like(share, dtype=torch.bool)
    while True:
        left = count - int((~free).sum())
        inclusion[free] = share[free] * (left / share[free].sum())
        over = free & (inclusion >= 1.0)
        if not bool(over.any()):
            return inclusion
        inclusion[over] = 1.0
        free &= ~over


def sample_groups(
    inclusion: np.ndarray, generator: torch.Generator | None = None, parts: int = 1
) -> list[np.ndarray]:
    """A sample of different groups for each of ``parts`` parts of a batch.

    In every part's sample a group is with its inclusion probability (systematic sampling in random order);
    the parts share the order and their shifts are spread evenly, so that together they meet as many groups
    as they can. What is drawn is torch's, what is computed with it numpy's: on a GPU's host each of the few
    small operations of a part would take as long as a kernel.

    Shape: (L,) float64 that add up to a whole number G -> ``parts`` times (G,) int64, rising.
    """
    order = to_numpy(torch.randperm(len(inclusion), generator=generator))
    spread = to_numpy(torch.randperm(parts, generator=generator))
    shift = to_numpy(torch.rand(1, generator=generator, dtype=torch.float64))
    return systematic(inclusion, order, (spread + shift) / parts)


def systematic(inclusion: np.ndarray, order: np.ndarray, shifts: np.ndarray) -> list[np.ndarray]:
    """For each shift the groups at ``shift``, ``shift`` + 1, ... when groups lie end to end in ``order``,
    each as long as its probability; as none is longer than 1, none is met twice.

    Shape: (L,), (L,), (P,) -> P times (G,), rising.
    """
    ends = inclusion[order].cumsum()
    points = np.arange(round(float(ends[-1]))) + shifts[:, np.newaxis]
    met = np.searchsorted(ends, points, side="right").clip(max=len(order) - 1)
    found = np.sort(order[met], axis=1)
    if (found[:, 1:] == found[:, :-1]).any():
        # Rounding has let two points meet one group.
        return [np.unique(each) for each in found]
    return list(found)


def expected_share(group_of_token: Tensor, sizes: Tensor, frequencies: Tensor | None = None) -> Tensor:
    """Share of the text a group is expected to hold: half by how frequent its tokens are, half by its number
    of tokens. Without frequencies Zipf's law over the order of tokens tells.

    Shape: (V,) long, (L,) long, (V,) -> (L,) float64, adds up to 1.
    """
    vocab = len(group_of_token)
    if frequencies is None:
        frequencies = 1.0 / (torch.arange(vocab, dtype=torch.float64) + 4.0)
    mass = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, group_of_token, frequencies)
    return 0.5 * mass / frequencies.sum() + 0.5 * sizes.double() / vocab


def checked_frequencies(frequencies: Tensor, vocab_size: int) -> Tensor:
    """As float64 on the CPU. Shape: (V,) -> (V,).

    Raises:
        MHEError: not V numbers from 0 on, or all of them 0.
    """
    if frequencies.shape != (vocab_size,):
        raise MHEError(
            f"frequencies are a number for each of the {vocab_size} tokens; got shape "
            f"{tuple(frequencies.shape)}"
        )
    frequencies = frequencies.detach().to("cpu", torch.float64)
    low, high = (float(each) for each in frequencies.aminmax())
    if not 0.0 <= low <= high < float("inf") or high == 0.0:
        raise MHEError(f"frequencies are numbers from 0 on, and not all 0; got {low:g} to {high:g}")
    return frequencies
