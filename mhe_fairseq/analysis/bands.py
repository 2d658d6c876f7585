"""The vocabulary in bands of tokens that are about as frequent."""

from __future__ import annotations

import torch
from torch import Tensor

EOS = "EOS"
UNSEEN = "never seen"

#: Last rank of a band; the last one has no end.
_ENDS = (10, 100, 1_000, 10_000)


class Bands:
    """Which band every token is in.

    The end of the sentence is a band of its own and has no rank: too much probability for it ends
    translations early.

    Args:
        counts: (V,) how often each token occurs in the training text.
        eos: the token that ends a sentence.

    Attributes:
        names: of the bands that have tokens, the most frequent one first: "EOS", "1-10", ..., "never seen".
        band_of_token: (V,) long.
    """

    def __init__(self, counts: Tensor, eos: int) -> None:
        frequency = counts.clone()
        frequency[eos] = -1
        # Equally frequent tokens rank in the order of the dictionary.
        ranks = torch.empty_like(counts)
        ranks[frequency.argsort(descending=True, stable=True)] = torch.arange(1, len(counts) + 1)
        bands = 1 + torch.bucketize(ranks, torch.tensor(_ENDS))
        bands[counts == 0] = len(_ENDS) + 2
        bands[eos] = 0
        starts = (1, *(end + 1 for end in _ENDS[:-1]))
        names = [
            EOS,
            *(f"{start}-{end}" for start, end in zip(starts, _ENDS, strict=True)),
            f"beyond {_ENDS[-1]}",
            UNSEEN,
        ]
        present, self.band_of_token = bands.unique(return_inverse=True)
        self.names = [names[band] for band in present.tolist()]

    def __len__(self) -> int:
        return len(self.names)

    def sum(self, values: Tensor) -> Tensor:
        """Sums over the tokens of each band. Shape: (V, ...) -> (B, ...)."""
        return values.new_zeros(len(self), *values.shape[1:]).index_add_(0, self.band_of_token, values)
