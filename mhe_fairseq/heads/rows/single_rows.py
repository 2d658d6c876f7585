"""First digits with one token: their rows are tied to the token's embedding."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.heads.rows.tied import check_embedding


class SingleRows(nn.Module):
    """Adds embeddings to the rows of first digits that have one token (``coding.shortlist``).

    Such a row stands for a token, as a row of a tied soft-max does, and learns with its embedding what is
    learnt of either. Rows of groups stay as they are: tied to the mean embedding of a hundred tokens, they
    learned more slowly than rows of their own. The embedding stays the model's: neither registered nor
    saved here.

    In eval mode without gradients the sums are kept until an addend changes: a step of beam search reads them
    for a few features. What is written through ``.data``, which torch does not count, is seen after the next
    forward pass in training mode or with gradients.

    Args:
        embedding: with a (V, d) weight.
        codebook: gives the groups.
        copies: K, the rows of the first digit are there K times.
        together: the K rows of one digit stand together; else all digits' first rows come before all second.

    Raises:
        MHEError: ``embedding`` is not (V, d).
    """

    tokens: Tensor
    rows: Tensor

    def __init__(
        self, embedding: nn.Embedding, codebook: Codebook, dim: int, copies: int = 1, together: bool = False
    ) -> None:
        super().__init__()
        check_embedding(embedding, len(codebook), dim)
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._embedding = (embedding,)
        self.copies, self.together = copies, together
        for name in ("tokens", "rows"):
            self.register_buffer(name, torch.empty(0, dtype=torch.long), persistent=False)
        self.regroup(codebook)

    def regroup(self, codebook: Codebook) -> None:
        """Take the groups of a codebook of the same lengths."""
        length = codebook.lengths[0]
        first = codebook.slots.div(codebook.size // length, rounding_mode="floor")
        tokens = (torch.bincount(first, minlength=length)[first] == 1).nonzero().squeeze(-1)
        copy = torch.arange(self.copies).unsqueeze(1)
        rows = first[tokens] * self.copies + copy if self.together else first[tokens] + length * copy
        self.tokens = tokens.repeat(self.copies).to(self.tokens.device)
        self.rows = rows.flatten().to(self.rows.device)
        self._kept: tuple[tuple[Tensor, Tensor], tuple[object, ...], Tensor] | None = None

    def forward(self, own: Tensor) -> Tensor:
        """Rows with the embeddings added. Shape: (R, d) -> (R, d), R at least K L_1."""
        if not len(self.tokens):
            return own
        embedding = self._embedding[0].weight
        addends = (own, embedding)
        are_parameters = all(isinstance(each, nn.Parameter) for each in addends)
        tells = are_parameters and not any(each.is_inference() for each in addends)
        if self.training or torch.is_grad_enabled() or not tells:
            # What ``torch.func`` has in place of parameters has no address, or is gone after the call; one of
            # inference mode does not count what is written into it.
            self._kept = None
            return self._sum(own, embedding)
        # A parameter's version counts what was written into it; moved or cast, it lies elsewhere. Held here,
        # no other one can come to lie where it was.
        now = tuple((each.data_ptr(), each._version, each.dtype) for each in addends)
        kept = self._kept
        if kept is None or kept[1] != now or any(a is not b for a, b in zip(kept[0], addends, strict=True)):
            kept = self._kept = (addends, now, self._sum(own, embedding))
        return kept[2]

    @torch.no_grad()
    def clear(self, own: Tensor) -> None:
        """A new head's rows begin as the embeddings alone."""
        own[self.rows] = 0.0

    def _sum(self, own: Tensor, embedding: Tensor) -> Tensor:
        return own.index_add(0, self.rows, F.embedding(self.tokens, embedding).to(own.dtype))
