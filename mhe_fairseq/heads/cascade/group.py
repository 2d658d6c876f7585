"""A cascade's first digit: logits of groups of tokens, from one row of each group or from several."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.rows.input_rows import marks_of_groups
from mhe_fairseq.heads.rows.single_rows import SingleRows
from mhe_fairseq.heads.wide_product import wide_linear

#: Prototypes of a group, at most: with a row for each of its tokens it would be a part of a soft-max.
MOST_PROTOTYPES = 64


class GroupLinear(nn.Linear):
    """Logits of the first digits: d -> L_1.

    A group has m rows, its prototypes. Its logit is log sum_j exp(x . w_j + b_j): groups of a soft-max over
    tokens have such logits, with a row for each token. One row is a linear layer.

    Rows of group g are m g .. m g + m - 1. They begin as different as rows of different groups; biases begin
    as -log m, so that m rows have the mass of one.

    Args:
        dim: d.
        codebook: gives the groups.
        tied: an embedding that is added to the rows of single tokens; None: rows of its own only. The m rows
            of a single token begin as the embedding alone, and stay alike: a token needs one.
        prototypes: m.

    Raises:
        MHEError: ``tied`` is not (V, d); ``prototypes`` is not in 1..64; a state dict with another m.
    """

    def __init__(
        self, dim: int, codebook: Codebook, tied: nn.Embedding | None = None, prototypes: int = 1
    ) -> None:
        if not 1 <= prototypes <= MOST_PROTOTYPES:
            raise MHEError(f"group_prototypes must be 1..{MOST_PROTOTYPES}, got {prototypes}")
        self.groups, self.prototypes = codebook.lengths[0], prototypes
        super().__init__(dim, self.groups * prototypes)
        nn.init.normal_(self.weight, mean=0.0, std=dim**-0.5)
        nn.init.constant_(self.bias, math.log(1 / prototypes))
        self.singles: SingleRows | None = None
        if tied is not None:
            self.singles = SingleRows(tied, codebook, dim, prototypes, together=True)
            self.singles.clear(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        """(N, d) -> (N, L_1); fp32 or wider where groups have several rows."""
        return self.merge(F.linear(input, self.rows(), self.bias))

    def wide_logits(self, input: Tensor) -> Tensor:
        """As ``forward``, without rounding to half precision in a search. Shape: (N, d) -> (N, L_1)."""
        return self.merge(wide_linear(input, self.rows(), self.bias))

    def rows(self) -> Tensor:
        """The rows in use, (L_1 m, d)."""
        return self.weight if self.singles is None else self.singles(self.weight)

    def merge(self, logits: Tensor) -> Tensor:
        """Logits of rows -> of groups. Shape: (N, L_1 m) -> (N, L_1)."""
        if self.prototypes == 1:
            return logits
        return _log_sum(wide(logits).unflatten(-1, (self.groups, self.prototypes)))

    def input_table(self) -> Tensor:
        """What a group adds to the input embeddings of its tokens, (L_1, d)."""
        return marks_of_groups(self.weight, self.groups)

    def regroup(self, codebook: Codebook) -> None:
        """Take the groups of a codebook of the same lengths."""
        if self.singles is not None:
            self.singles.regroup(codebook)

    def extra_repr(self) -> str:
        text = super().extra_repr()
        return text if self.prototypes == 1 else f"{text}, prototypes={self.prototypes}"

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        weight = state_dict.get(prefix + "weight")
        theirs, left = (self.prototypes, 0) if weight is None else divmod(len(weight), self.groups)
        if theirs != self.prototypes and not left:
            raise MHEError(
                f"the checkpoint's cascade has {theirs} rows for each group and this model's has "
                f"{self.prototypes}; give --mhe-group-prototypes {theirs}"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _log_sum(logits: Tensor) -> Tensor:
    """Log-sum-exp over the last dimension, which is short. Shape: (..., m) -> (...).

    By halves, an operator each, of which a search counts every one: ``torch.logsumexp`` is made of more.
    """
    odd: Tensor | None = None
    while (count := logits.size(-1)) > 1:
        if count % 2:
            last, logits = logits[..., -1:], logits[..., :-1]
            odd = last if odd is None else torch.logaddexp(odd, last)
        one, other = logits.chunk(2, dim=-1)
        logits = torch.logaddexp(one, other)
    return (logits if odd is None else torch.logaddexp(logits, odd)).squeeze(-1)
