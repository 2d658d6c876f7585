"""One digit of a cascade: p(digit | the digits before it), a soft-max over the rows of the prefix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.grouped import Layout, Pairs, grouped_linear
from mhe_fairseq.heads.tied import MaybeTied


class LevelLoss(NamedTuple):
    """Parts of a ``HeadLoss`` that come from one digit, each (N,).

    Attributes:
        nll: -log p(gold digit | gold prefix).
        smooth: -log p(digit | prefix), averaged over tokens, or None.
        correct: whether the gold digit is the best one after the gold prefix, or None.
    """

    nll: Tensor
    smooth: Tensor | None
    correct: Tensor | None


class Level(MaybeTied):
    """P prefixes, each followed by one of L digits; digits without a token below them have no probability.

    Args:
        prefixes: P.
        length: L.
        dim: width of the features.
        tied: an ``nn.Embedding`` whose rows are used; None makes a table (P, L, dim).
    """

    counts: Tensor
    possible: Tensor

    def __init__(self, prefixes: int, length: int, dim: int, tied: nn.Embedding | None = None) -> None:
        super().__init__(tied)
        self.prefixes = prefixes
        self.length = length
        if tied is None:
            self.table = nn.Parameter(torch.empty(prefixes, length, dim))
            nn.init.normal_(self.table, mean=0.0, std=dim**-0.5)
        self.layout = Layout(prefixes, length)
        #: Tokens below every digit.
        self.register_buffer("counts", torch.zeros(prefixes, length, dtype=torch.long), persistent=False)
        #: Digits that have tokens; all digits of a prefix that has none, so that nothing is 0 / 0.
        self.register_buffer("possible", torch.ones(prefixes, length, dtype=torch.bool), persistent=False)
        self.is_full = True

    def own_weight(self) -> Tensor:
        """(P, L, dim); a tied weight is (V, dim)."""
        return self.table

    def set_tokens(self, counts: Tensor, token_of_slot: Tensor) -> None:
        """Learn which digits have tokens. Shape: (P, L) long; (P * L,) long, used when tied."""
        possible = (counts > 0) | (counts.sum(dim=1, keepdim=True) == 0)
        self.counts.copy_(counts)
        self.possible.copy_(possible)
        self.is_full = bool(possible.all())
        self.layout = Layout(self.prefixes, self.length, token_of_slot if self.is_tied else None)

    def share(self, prefix: Tensor, dtype: torch.dtype) -> Tensor:
        """Share of a prefix's tokens below each of its digits. Shape: (...) -> (..., L)."""
        counts = self.counts[prefix].to(dtype)
        return counts / counts.sum(dim=-1, keepdim=True).clamp(min=1)

    def loss(
        self,
        x: Tensor,
        prefix: Tensor,
        gold: Tensor,
        sampled: Tensor | None = None,
        per_level: bool = False,
        accuracy: bool = False,
    ) -> LevelLoss:
        """Loss of the gold digits.

        Args:
            x: (N, dim).
            prefix: (N,) long, the gold prefixes.
            gold: (N,) long, the gold digits.
            sampled: (S,) long: prefixes to estimate the smoothing term on.
            per_level: the smoothing term is that of the gold prefix.
            accuracy: also tell which gold digits are the best.
        """
        pairs = Pairs.of(prefix)
        groups, weights = [], None
        if sampled is not None:
            drawn, times = sampled.unique(return_counts=True)
            groups, weights = drawn.tolist(), times.to(wide(x[:0]).dtype) / len(sampled)
        logits, common = grouped_linear(x, self.weight, self.layout, pairs, groups)
        logits, gold = wide(logits), gold.index_select(0, pairs.order)
        masked = self._mask(logits, pairs.groups)
        nll = F.cross_entropy(masked, gold, reduction="none")
        correct = masked.argmax(dim=-1).eq(gold).to(nll.dtype) if accuracy else None
        smooth = None
        if weights is not None:
            common = wide(common)
            log_z = self._mask(common, drawn).logsumexp(dim=-1)
            mean = (common * self.share(drawn, common.dtype)).sum(dim=-1)
            # No matrix product: autocast would make it half precision.
            smooth = ((log_z - mean) * weights).sum(dim=-1)
        elif per_level:
            mean = (logits * self.share(pairs.groups, logits.dtype)).sum(dim=-1)
            smooth = pairs.restore(masked.logsumexp(dim=-1) - mean)
        return LevelLoss(pairs.restore(nll), smooth, None if correct is None else pairs.restore(correct))

    def logits(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        """Raw logits of pairs (row of x, prefix). Shape: (N, dim), (R,), (R,) -> (R, L)."""
        pairs = Pairs.of(prefix, rows)
        logits, _ = grouped_linear(x, self.weight, self.layout, pairs)
        return wide(pairs.restore(logits))

    def log_softmax(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        """log p(digit | prefix) of pairs (row of x, prefix). Shape: (N, dim), (R,), (R,) -> (R, L)."""
        return F.log_softmax(self._mask(self.logits(x, prefix, rows), prefix), dim=-1)

    def all_log_softmax(self, x: Tensor) -> Tensor:
        """log p(digit | prefix) of every prefix. Shape: (N, dim) -> (N, P, L)."""
        layout = self.layout.to(x.device)
        logits = layout.by_slot(wide(F.linear(x, layout.read_all(self.weight))))
        if not self.is_full:
            logits = logits.masked_fill(~self.possible, -torch.inf)
        return F.log_softmax(logits, dim=-1)

    def _mask(self, logits: Tensor, prefix: Tensor) -> Tensor:
        """-inf for digits without tokens. Shape: (..., R, L), (R,) -> (..., R, L)."""
        return logits if self.is_full else logits.masked_fill(~self.possible[prefix], -torch.inf)

    def extra_repr(self) -> str:
        kind = "tied" if self.is_tied else "own"
        return f"{self.prefixes}x{self.length}x{self.weight.size(-1)}, {kind}"
