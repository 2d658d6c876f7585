"""Mean embeddings of groups of tokens: what ties rows that stand for a first digit to the embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.heads.tied import check_embedding


class GroupMeans(nn.Module):
    """For every first digit, the mean of an embedding's rows over its tokens.

    A first digit of one token (``coding.shortlist``) has the token's own embedding, as in a tied soft-max:
    a feature that is like an embedding, as of a word that is copied, has a large logit for the token's
    group, however rare the word. The embedding stays the model's: neither registered nor saved here.

    In eval mode without gradients the means are kept until the embedding changes: a step of beam search reads
    them for a few rows.

    Args:
        embedding: with a (V, d) weight.
        codebook: gives the groups.
    """

    tokens: Tensor
    starts: Tensor

    def __init__(self, embedding: nn.Embedding, codebook: Codebook) -> None:
        super().__init__()
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._embedding = (embedding,)
        self.register_buffer("tokens", torch.empty(len(codebook), dtype=torch.long), persistent=False)
        self.register_buffer("starts", torch.empty(codebook.lengths[0], dtype=torch.long), persistent=False)
        self.regroup(codebook)

    def regroup(self, codebook: Codebook) -> None:
        """Take the groups of a codebook of the same lengths."""
        group = codebook.slots.div(codebook.size // codebook.lengths[0], rounding_mode="floor")
        sizes = torch.bincount(group, minlength=codebook.lengths[0])
        self.tokens.copy_(group.argsort(stable=True))
        self.starts.copy_(sizes.cumsum(0) - sizes)
        self._kept: tuple[tuple[object, ...], Tensor] | None = None

    def forward(self) -> Tensor:
        """(L_1, d) in the embedding's type; zeros for digits without tokens."""
        weight = self._embedding[0].weight
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._means(weight)
        # A parameter's version counts what was written into it; moved or cast it lies elsewhere.
        now = (weight.data_ptr(), weight._version, weight.dtype)
        if self._kept is None or self._kept[0] != now:
            self._kept = (now, self._means(weight))
        return self._kept[1]

    def _means(self, weight: Tensor) -> Tensor:
        return F.embedding_bag(self.tokens, weight, self.starts, mode="mean")


class GroupLinear(nn.Linear):
    """Logits of the first digits: d -> L_1.

    Args:
        dim: d.
        codebook: gives the groups.
        tied: an embedding whose means are added to the rows, which begin at zero then. None: rows of its own.

    Raises:
        MHEError: ``tied`` is not (V, d).
    """

    def __init__(self, dim: int, codebook: Codebook, tied: nn.Embedding | None = None) -> None:
        super().__init__(dim, codebook.lengths[0])
        nn.init.normal_(self.weight, mean=0.0, std=dim**-0.5)
        nn.init.zeros_(self.bias)
        self.means: GroupMeans | None = None
        if tied is not None:
            check_embedding(tied, len(codebook), dim)
            self.means = GroupMeans(tied, codebook)
            nn.init.zeros_(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(N, d) -> (N, L_1)."""
        if self.means is None:
            return F.linear(input, self.weight, self.bias)
        return F.linear(input, self.weight + self.means().to(self.weight.dtype), self.bias)

    def regroup(self, codebook: Codebook) -> None:
        """Take the groups of a codebook of the same lengths."""
        if self.means is not None:
            self.means.regroup(codebook)
