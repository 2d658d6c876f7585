"""Which tokens, and which groups of tokens, were predicted in place of which."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook

#: Pairs of tokens shown for a pair of groups.
EXAMPLES = 3


@dataclass(frozen=True)
class GroupPair:
    """A group of the target and another one that the predicted token was of.

    Attributes:
        gold, predicted: first digits.
        count: of positions.
        loss: nats lost there in all.
        examples: (target, predicted token, count), most loss first.
    """

    gold: int
    predicted: int
    count: int
    loss: float
    examples: tuple[tuple[int, int, int], ...]


class Confusions:
    """Wrong predictions by pair of tokens, as many entries as there are different pairs.

    Args:
        vocab_size: V.
    """

    def __init__(self, vocab_size: int) -> None:
        self._vocab = vocab_size
        self._merged = _sums(
            *(torch.zeros(0, dtype=kind) for kind in (torch.long, torch.long, torch.float64))
        )
        self._new: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, gold: Tensor, predicted: Tensor, loss: Tensor) -> None:
        """Add predictions, right ones too. Shape: (N,) long, (N,) long, (N,) nats."""
        wrong = gold != predicted
        pairs = (gold * self._vocab + predicted)[wrong]
        self._new.append((pairs, torch.ones_like(pairs), loss[wrong].double()))
        # Sorting is paid for by what was added since the last time.
        if sum(len(each[0]) for each in self._new) > len(self._merged[0]) + 10_000:
            self._merge()

    def worst(self, codebook: Codebook, top: int) -> list[GroupPair]:
        """The ``top`` pairs of different first digits with the most loss."""
        groups, _, losses = self._by_group(codebook)
        order = losses.argsort(descending=True, stable=True)[:top]
        first = codebook.lengths[0]
        return self.of(codebook, [(pair // first, pair % first) for pair in groups[order].tolist()])

    def of(self, codebook: Codebook, wanted: list[tuple[int, int]]) -> list[GroupPair]:
        """These pairs of first digits (target's, predicted)."""
        groups, counts, losses = self._by_group(codebook)
        first = codebook.lengths[0]
        place = {pair: i for i, pair in enumerate(groups.tolist())}
        found = []
        for gold, predicted in wanted:
            i = place.get(gold * first + predicted)
            count, loss = (0, 0.0) if i is None else (int(counts[i]), float(losses[i]))
            found.append(GroupPair(gold, predicted, count, loss, self._examples(codebook, gold, predicted)))
        return found

    def _by_group(self, codebook: Codebook) -> tuple[Tensor, Tensor, Tensor]:
        """Pairs of different first digits as one number, their counts and losses. Shape: (P,) each."""
        pairs, counts, losses = self._merge()
        gold, predicted = self._groups(codebook)
        other = gold != predicted
        return _sums((gold * codebook.lengths[0] + predicted)[other], counts[other], losses[other])

    def _examples(self, codebook: Codebook, gold: int, predicted: int) -> tuple[tuple[int, int, int], ...]:
        pairs, counts, losses = self._merge()
        golds, predictions = self._groups(codebook)
        here = ((golds == gold) & (predictions == predicted)).nonzero().flatten()
        order = here[losses[here].argsort(descending=True, stable=True)[:EXAMPLES]]
        rows = zip(pairs[order].tolist(), counts[order].tolist(), strict=True)
        return tuple((pair // self._vocab, pair % self._vocab, count) for pair, count in rows)

    def _groups(self, codebook: Codebook) -> tuple[Tensor, Tensor]:
        """First digits of both tokens of every pair. Shape: (P,) each."""
        pairs = self._merge()[0]
        both = torch.stack([pairs // self._vocab, pairs % self._vocab])
        gold, predicted = codebook.digits(both)[..., 0]
        return gold, predicted

    def _merge(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._new:
            parts = zip(self._merged, *self._new, strict=True)
            self._merged = _sums(*(torch.cat(part) for part in parts))
            self._new = []
        return self._merged


def _sums(keys: Tensor, counts: Tensor, losses: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Every key once, sorted, with the sums of its counts and losses. Shape: (M,) each -> (P,) each."""
    keys, where = keys.unique(return_inverse=True)
    return (
        keys,
        counts.new_zeros(len(keys)).index_add_(0, where, counts),
        losses.new_zeros(len(keys)).index_add_(0, where, losses),
    )
