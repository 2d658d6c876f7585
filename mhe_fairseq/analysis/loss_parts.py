"""A loss taken apart: by digit, and by token of the vocabulary, exactly and for any kind of model."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_fairseq.analysis.calibration import Calibration
from mhe_fairseq.analysis.confusions import Confusions
from mhe_fairseq.analysis.copied import Copied
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError


class LossParts:
    """Sums over the target tokens of a text, batch after batch.

    They are kept for every token of the vocabulary: those of a band, or any other set of tokens, add up.

    Args:
        codebook: the digits to report by; the model need not have been trained with it.

    Attributes:
        gold: (V,) long, how often a token was the target.
        correct: (V,) long, how often it was the target and the most probable token.
        predicted: (V,) long, how often it was the most probable token.
        digit_loss: (V, H) float64, nats lost where it was the target, in each digit.
        mass: (V,) float64, its probability summed over all positions.
        digit_correct: (H,) long, how often a digit was the most probable one, given the target's before it.
        calibration: how often a prediction is right, by its probability.
        confusions: which tokens were predicted in place of which.
        copied: targets that stand in the source sentence.
    """

    def __init__(self, codebook: Codebook) -> None:
        self.codebook = codebook
        size, heads = len(codebook), codebook.heads
        self.gold, self.correct, self.predicted = (torch.zeros(size, dtype=torch.long) for _ in range(3))
        self.digit_loss = torch.zeros(size, heads, dtype=torch.float64)
        self.mass = torch.zeros(size, dtype=torch.float64)
        self.digit_correct = torch.zeros(heads, dtype=torch.long)
        self.calibration = Calibration()
        self.confusions = Confusions(size)
        self.copied = Copied(size)

    @property
    def tokens(self) -> int:
        """N so far."""
        return int(self.gold.sum())

    def update(self, log_probs: Tensor, target: Tensor, in_source: Tensor | None = None) -> None:
        """Add N positions.

        Args:
            log_probs: (N, V), normalised.
            target: (N,) long.
            in_source: (N,) bool, whether the target stands in the source sentence; None: not known.

        Raises:
            MHEError: V is not the codebook's.
        """
        if log_probs.size(-1) != len(self.codebook):
            raise MHEError(
                f"the model has probabilities for {log_probs.size(-1)} tokens and the codebook is for "
                f"{len(self.codebook)}; use the dictionary the model was trained with"
            )
        losses, digit_correct = digit_losses(log_probs, target, self.codebook)
        best, predicted = log_probs.max(dim=-1)
        mass = log_probs.exp().sum(dim=0, dtype=torch.float64)
        # All that is V wide is summed up where it was computed; what goes on is small.
        losses, digit_correct, best, predicted, mass, target = (
            each.cpu() for each in (losses, digit_correct, best, predicted, mass, target)
        )
        right = predicted == target
        self.gold += target.bincount(minlength=len(self.gold))
        self.correct += target[right].bincount(minlength=len(self.gold))
        self.predicted += predicted.bincount(minlength=len(self.gold))
        self.digit_loss.index_add_(0, target, losses)
        self.mass += mass
        self.digit_correct += digit_correct.sum(dim=0)
        self.calibration.update(best.exp(), right)
        whole = losses.sum(dim=-1)
        self.confusions.update(target, predicted, whole)
        if in_source is not None:
            self.copied.update(target, right, whole, in_source.cpu())


def digit_losses(log_probs: Tensor, target: Tensor, codebook: Codebook) -> tuple[Tensor, Tensor]:
    """-log p(digit_h | digits before it) of every digit of the targets, by the chain rule.

    The probability of a first digit is the sum over all tokens that begin with it, and so on: defined for any
    distribution over tokens, and the digits of a token add up to its -log p.

    Args:
        log_probs: (N, V), normalised.
        target: (N,) long.

    Returns:
        (N, H) float64 nats, and (N, H) bool: the digit is the most probable one after the target's digits
        before it.
    """
    count = log_probs.size(0)
    rows = torch.arange(count, device=target.device)
    digits = codebook.digits(target)
    # A token in each slot of the grid; a slot without one is impossible.
    tokens = codebook.token_of_slot.to(log_probs.device)
    grid = log_probs.index_select(1, tokens.clamp(min=0))
    if codebook.holes:
        grid.masked_fill_(tokens < 0, -torch.inf)
    losses, correct = [], []
    before = torch.zeros(count, dtype=torch.float64, device=log_probs.device)
    rest = codebook.size
    for h, length in enumerate(codebook.lengths):
        rest //= length
        grid = grid.view(count, length, rest)
        choices = grid.logsumexp(dim=-1)
        gold = digits[:, h]
        here = choices[rows, gold].double()
        losses.append(before - here)
        correct.append(choices.argmax(dim=-1) == gold)
        # Only what begins as the target does matters for its next digit.
        grid, before = grid[rows, gold], here
    return torch.stack(losses, dim=-1), torch.stack(correct, dim=-1)
