"""One digit of a cascade: p(digit | the digits before it), a soft-max over the rows of the prefix."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.grouped import Pairs, grouped_linear
from mhe_fairseq.heads.layout import Layout
from mhe_fairseq.heads.rows.tied import MaybeTied
from mhe_fairseq.heads.wide_product import is_searching, wide_linear


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


class PairScores(NamedTuple):
    """What pairs of a row and a prefix come to, each (R,).

    Attributes:
        log_sum: log-sum-exp of the logits of the digits that have tokens.
        picked: the logit of one digit, -inf where it has none.
        mean: mean logit over the prefix's tokens, or None.
        largest: the largest logit, no gradient, or None.
        right: whether it is that of the digit picked, or None.
    """

    log_sum: Tensor
    picked: Tensor
    mean: Tensor | None
    largest: Tensor | None
    right: Tensor | None


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
        self.is_full = self.is_even = True

    def own_weight(self) -> Tensor:
        """(P, L, dim); a tied weight is (V, dim)."""
        return self.table

    def set_tokens(self, counts: Tensor, token_of_slot: Tensor) -> None:
        """Learn which digits have tokens. Shape: (P, L) long; (P * L,) long, used when tied."""
        possible = (counts > 0) | (counts.sum(dim=1, keepdim=True) == 0)
        self.counts.copy_(counts)
        self.possible.copy_(possible)
        self.is_full = bool(possible.all())
        self.is_even = bool((counts == counts[:, :1]).all())
        self.layout = Layout(len(counts), self.length, token_of_slot if self.is_tied else None)

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
            sampled: (N, S) long: prefixes to estimate each row's smoothing term on.
            per_level: the smoothing term is that of the gold prefix.
            accuracy: also tell which gold digits are the best.
        """
        n = len(prefix)
        rows = None
        if sampled is not None:
            # Gold and sampled prefixes in one call: the gradient of a prefix is written once.
            own = torch.arange(n, device=x.device)
            rows = torch.cat([own, own.repeat_interleave(sampled.size(1))])
            prefix = torch.cat([prefix, sampled.flatten()])
            # The sampled ones read some digit, and it is not used.
            gold = gold[torch.arange(len(prefix), device=x.device) % n] if n else gold
        scores = self.pair_scores(x, prefix, rows, gold, mean=per_level or rows is not None, best=accuracy)
        nll = (scores.log_sum - scores.picked)[:n]
        correct = None if scores.right is None else scores.right[:n]
        smooth = None
        if scores.mean is not None:
            smooth = scores.log_sum - scores.mean
            smooth = smooth if sampled is None else smooth[n:].view(sampled.shape).mean(dim=-1)
        return LevelLoss(nll, smooth, correct)

    def pair_scores(
        self,
        x: Tensor,
        prefix: Tensor,
        rows: Tensor | None,
        digit: Tensor,
        mean: bool = False,
        best: bool = False,
    ) -> PairScores:
        """Pairs (row of x, prefix), with the digit to pick after it.

        Shape: (N, dim), (R,), (R,) or None where pair i is of row i, (R,) -> (R,) each.
        """
        pairs = Pairs.of(prefix, rows)
        logits = self._of_pairs(x, pairs)
        masked = self._mask(logits, pairs.groups)
        column = digit.index_select(0, pairs.order)
        picked, summed = self._picked(masked, column)
        log_sum = summed.logsumexp(dim=-1)
        largest = right = None
        if best:
            largest, place = masked.detach().max(dim=-1)
            right = pairs.restore(place.eq(column).to(log_sum.dtype))
            largest = pairs.restore(largest)
        means = pairs.restore(self._mean(logits, pairs.groups)) if mean else None
        return PairScores(pairs.restore(log_sum), pairs.restore(picked), means, largest, right)

    def _of_pairs(self, x: Tensor, pairs: Pairs) -> Tensor:
        """Logits, fp32 or wider, in the order of ``pairs``. Shape: (N, dim), R pairs -> (R, L)."""
        return wide(grouped_linear(x, self.weight, self.layout, pairs))

    def _picked(self, logits: Tensor, digit: Tensor) -> tuple[Tensor, Tensor]:
        """The digits' logits, and those to sum over. Shape: (R, L), (R,) -> (R,), (R, L)."""
        return logits.gather(-1, digit.unsqueeze(-1)).squeeze(-1), logits

    def _mean(self, logits: Tensor, prefix: Tensor) -> Tensor:
        """Mean logit over the tokens of a prefix. Shape: (R, L), (R,) -> (R,)."""
        if self.is_even:
            return logits.mean(dim=-1)
        # No matrix product: autocast would make it half precision.
        return (logits * self.share(prefix, logits.dtype)).sum(dim=-1)

    def logits(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        """Raw logits of pairs (row of x, prefix). Shape: (N, dim), (R,), (R,) -> (R, L)."""
        pairs = Pairs.of(prefix, rows)
        # Rows of groups are read in the features' type.
        x = wide(x) if is_searching(x) else x
        return wide(pairs.restore(grouped_linear(x, self.weight, self.layout, pairs)))

    def log_softmax(self, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        """log p(digit | prefix) of pairs (row of x, prefix). Shape: (N, dim), (R,), (R,) -> (R, L)."""
        return F.log_softmax(self._mask(self.logits(x, prefix, rows), prefix), dim=-1)

    def all_log_softmax(self, x: Tensor) -> Tensor:
        """log p(digit | prefix) of every prefix. Shape: (N, dim) -> (N, P, L)."""
        layout = self.layout.to(x.device)
        logits = layout.by_slot(wide_linear(x, layout.read_all(self.weight)))
        if not self.is_full:
            logits = logits.masked_fill(~self.possible, -torch.inf)
        return F.log_softmax(logits, dim=-1)

    def _mask(self, logits: Tensor, prefix: Tensor) -> Tensor:
        """-inf for digits without tokens. Shape: (..., R, L), (R,) -> (..., R, L)."""
        return logits if self.is_full else logits.masked_fill(~self.possible[prefix], -torch.inf)

    def extra_repr(self) -> str:
        kind = "tied" if self.is_tied else "own"
        return f"{self.prefixes}x{self.length}x{self.weight.size(-1)}, {kind}"
