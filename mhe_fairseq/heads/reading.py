"""What is asked of a head about one set of features, so that what its answers share is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from mhe_fairseq.heads.base import Candidates, OutputHead


class Reading:
    """Features (N, d) as a head reads them: a step of beam search. Its methods are those of the head.

    Args:
        head: the head.
        features: (N, d).
    """

    def __init__(self, head: OutputHead, features: Tensor) -> None:
        self.head = head
        self.features = features

    def log_prob_of(self, tokens: Tensor) -> Tensor:
        return self.head.log_prob_of(self.features, tokens)

    def candidates(self, k: int, tokens: Tensor) -> Candidates:
        return self.head.candidates(self.features, k, tokens)

    def beam_candidates(self, k: int, scores: Tensor, beam: int, without: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.beam_candidates(self.features, k, scores, beam, without)
