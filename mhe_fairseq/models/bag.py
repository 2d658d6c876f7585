"""A document as the sum of the embeddings of its tokens and pairs of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: What numbers of pairs are made with; any odd numbers of this size do.
_FIRST, _SECOND = 1_000_003, 7_919

#: Rows begin smaller by this, and features are larger by it. Adam's steps are as large for all parameters,
#: and rows, each of which few documents read, learn best with five times those of the output layer.
_STEPS = 5.0


class BagOfEmbeddings(nn.Module):
    """(B, T) tokens -> (B, d) features, in any order of the tokens but for the pairs of neighbours.

    Every different token and pair of a document counts once, and the sum is divided by the square root of
    their number: so long and short documents have features of one size, which a mean has not. Pairs share
    ``buckets`` rows: a pair's row is a hash of its tokens. A document without a token has the features of a
    sum of nothing.

    Args:
        tokens: size of the dictionary.
        first: tokens below it (fairseq's own symbols) do not count.
        padding: of a dictionary's numbers, what fills rows up.
        buckets: rows for pairs, 0: none are read.
        dim: width of the embeddings.
        width: d, of the features; ``dim`` without layers.
        layers: hidden layers, or 0.
        dropout: of the sum, and behind every layer, in training.
    """

    def __init__(
        self,
        tokens: int,
        first: int,
        padding: int,
        buckets: int,
        dim: int,
        width: int,
        layers: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.tokens, self.first, self.padding, self.buckets = tokens, first, padding, buckets
        self.dropout = dropout
        self.rows = nn.Parameter(torch.empty(tokens + buckets, dim))
        nn.init.normal_(self.rows, std=dim**-0.5 / _STEPS)
        sizes = [dim, *[width] * layers]
        self.layers = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(sizes, sizes[1:], strict=False)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        numbers, counts = self.numbers(tokens)
        starts = counts.cumsum(dim=0) - counts
        x = F.embedding_bag(numbers, self.rows, starts, mode="sum")
        x = x * (_STEPS / counts.clamp(min=1).to(x.dtype).sqrt()).unsqueeze(1)
        x = F.dropout(x, self.dropout, self.training)
        for layer in self.layers:
            x = F.dropout(F.relu(layer(x)), self.dropout, self.training)
        return x

    def numbers(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table that documents read. Shape: (B, T) long -> (R,) long, and (B,) long: how many
        of them are each document's, one document after the other."""
        real = (tokens >= self.first) & (tokens != self.padding)
        if self.buckets and tokens.size(1) > 1:
            before, after = tokens[:, :-1], tokens[:, 1:]
            pairs = (before * _FIRST + after * _SECOND) % self.buckets + self.tokens
            tokens = torch.cat([tokens, pairs], dim=1)
            real = torch.cat([real, real[:, :-1] & real[:, 1:]], dim=1)
        nothing = self.tokens + self.buckets
        tokens = tokens.masked_fill(~real, nothing).sort(dim=1).values
        once = tokens != nothing
        once[:, 1:] &= tokens[:, 1:] != tokens[:, :-1]
        return tokens[once], once.sum(dim=1)
