"""What is asked of a head about one set of features, so that what its answers share is computed once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mhe_fairseq.heads.allowed import Allowed
    from mhe_fairseq.heads.base import Candidates, OutputHead


class Reading:
    """Features (N, d) as a head reads them: a step of beam search.

    A search keeps log-probabilities (N, W + k), those of W special tokens and of k others, and a table of
    the others' tokens (N, W + k), whose first columns it has filled in. ``begin`` writes what does not hang
    on what the hypotheses score, and +inf elsewhere; ``finish`` the rest.

    Args:
        head: the head.
        features: (N, d).
    """

    def __init__(self, head: OutputHead, features: Tensor) -> None:
        self.head = head
        self.features = features

    def only(self, allowed: Allowed) -> Reading:
        """The same, which finds only tokens that are allowed. Nothing is normalised anew."""
        from mhe_fairseq.heads.allowed import RestrictedReading

        return RestrictedReading(self, allowed)

    def log_prob_of(self, tokens: Tensor) -> Tensor:
        """``OutputHead.log_prob_of``."""
        return self.head.log_prob_of(self.features, tokens)

    def candidates(self, k: int, tokens: Tensor) -> Candidates:
        """``OutputHead.candidates``."""
        return self.head.candidates(self.features, k, tokens)

    def beam_candidates(self, k: int, scores: Tensor, beam: int, without: Tensor) -> tuple[Tensor, Tensor]:
        """``OutputHead.beam_candidates``."""
        return self.head.beam_candidates(self.features, k, scores, beam, without)

    def begin(self, log_probs: Tensor, table: Tensor, special: Tensor) -> None:
        """Fill in the columns of the tokens ``special`` (W,), and all others or none."""
        count = len(special)
        if self.head.searches_beams:
            log_probs[:, :count] = self.log_prob_of(special)
            log_probs[:, count:] = torch.inf
            return
        k = log_probs.size(1) - count
        found = self.candidates(k + count, special)
        best, place = found.scores.masked_fill(torch.isin(found.tokens, special), -torch.inf).topk(k, dim=1)
        log_probs[:, :count], log_probs[:, count:] = found.given, best
        table[:, count:] = found.tokens.gather(1, place)

    def finish(self, log_probs: Tensor, table: Tensor, special: Tensor, scores: Tensor, beam: int) -> None:
        """Fill in the rows that still have +inf.

        The k best continuations of a sentence are among what is filled in then.

        Args:
            log_probs, table, special: as in ``begin``; -inf has been written to columns since, or to rows.
            scores: (N,) of the hypotheses, any stride; -inf: not to be continued.
            beam: hypotheses of a sentence, which stand together.
        """
        if not self.head.searches_beams:
            return
        count = len(special)
        is_left = log_probs[:, count:] == torch.inf
        going = is_left.any(dim=1)
        # To ask a device would take longer than to search for nothing.
        if going.device.type == "cpu" and not bool(going.any()):
            return
        k = is_left.size(1)
        scores = scores.to(log_probs.dtype).masked_fill(~going, -torch.inf)
        found, tokens = self.beam_candidates(k, scores, beam, special)
        found = found.masked_fill(found.isnan(), -torch.inf)
        log_probs[:, count:] = torch.where(is_left, found, log_probs[:, count:])
        table[:, count:] = torch.where(going.unsqueeze(1), tokens, table[:, count:])
