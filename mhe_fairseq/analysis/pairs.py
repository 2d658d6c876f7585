"""What a model of many languages loses in each pair."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PairSummary:
    """Of one pair.

    Attributes:
        pair: "aa-bb".
        tokens: N, of the target.
        loss: nats a token.
        correct: share of the tokens that were the most probable ones.
        in_language: share of the probability that tokens of the target language's training text have.
        eos: probability of the end of the sentence, summed over all positions, as a multiple of how often it
            is there; None where it never is.
    """

    pair: str
    tokens: int
    loss: float
    correct: float
    in_language: float
    eos: float | None


class PairSums:
    """Sums over the positions of each pair, batch after batch.

    Args:
        in_language: pair -> (V,) bool, tokens that its target language's training text has.
        eos: the token that ends a sentence.
    """

    def __init__(self, in_language: dict[str, Tensor], eos: int) -> None:
        self._in_language, self._eos = in_language, eos
        #: Of each pair: tokens, loss, correct ones, probability in the language and of the end, ends.
        self._sums = {pair: torch.zeros(6, dtype=torch.float64) for pair in in_language}

    def update(self, pair: str, log_probs: Tensor, target: Tensor) -> None:
        """Add positions of a pair. Shape: (N, V), normalised; (N,) long."""
        probs = log_probs.exp()
        mine = self._in_language[pair].to(probs.device)
        is_end = target == self._eos
        parts = (
            torch.ones_like(target),
            -log_probs.gather(1, target.unsqueeze(1)),
            log_probs.argmax(dim=1) == target,
            probs[:, mine],
            probs[:, self._eos],
            is_end,
        )
        self._sums[pair] += torch.stack([part.double().sum() for part in parts]).cpu()

    def summaries(self) -> list[PairSummary]:
        """Of every pair that had tokens."""
        found = []
        for pair, sums in self._sums.items():
            tokens, loss, correct, mine, end, ends = sums.tolist()
            if tokens:
                eos = end / ends if ends else None
                share = (loss / tokens, correct / tokens, mine / tokens)
                found.append(PairSummary(pair, int(tokens), *share, eos))
        return found
