"""A cascade's best tokens and single log-probabilities, for a search: by kernels, or group by group."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.heads.allowed import Allowed
from mhe_fairseq.heads.base import Candidates, OutputHead
from mhe_fairseq.heads.cascade import search_kernels as kernels
from mhe_fairseq.heads.cascade.search import Beams, best_first
from mhe_fairseq.heads.reading import Reading

if TYPE_CHECKING:
    from mhe_fairseq.heads.cascade.head import CascadeHead

#: Log-probabilities of all tokens that are held at a time, at most: 1 GB.
MOST_NUMBERS = 2**28


class CascadeReading(Reading):
    """Features (N, d) as a cascade reads them: groups are scored once, whatever is asked."""

    head: CascadeHead

    def only(self, allowed: Allowed) -> RestrictedCascadeReading:
        return RestrictedCascadeReading(self.head, self.features, allowed)

    @cached_property
    def groups(self) -> Tensor:
        """(N, L_1): log p(first digit)."""
        return self.head.group_log_probs(self.features)

    @cached_property
    def inputs(self) -> list[Tensor]:
        """What each level after the first reads."""
        return self.head.inputs(self.features)

    @cached_property
    def prefixes(self) -> Tensor:
        """(N, P): log-probability of all digits but the last. For kernels, which open last digits only."""
        if self.head.subgroup is None:
            return self.groups
        return self.head.subgroup.all_log_softmax(self.inputs[0]).add_(self.groups.unsqueeze(-1)).flatten(1)

    @property
    def _is_for_columns(self) -> bool:
        """An accelerator, without kernels: it scores V tokens in less time than the host opens groups in."""
        head, device = self.head, self.features.device
        return (
            device.type != "cpu" and head.finds_best and len(self.features) * head.vocab_size <= MOST_NUMBERS
        )

    @torch.no_grad()
    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """``OutputHead.topk``."""
        if kernels.serves(self.head, self.features, k, 1):
            nothing = torch.zeros(0, dtype=torch.long, device=self.features.device)
            found = self._by_kernels(k, self.groups.new_zeros(len(self.groups)), 1, nothing)
            if found is not None:
                best, place = found[0].topk(k, dim=1)
                return best, found[1].gather(1, place)
        if self._is_for_columns:
            best, tokens = self.head.log_probs(self.features).topk(k, dim=1)
            return best, tokens
        return self.head.best_by_groups(self.groups, self.inputs, k)

    @torch.no_grad()
    def log_prob_of(self, tokens: Tensor) -> Tensor:
        if tokens.numel() and kernels.serves(self.head, self.features, 1, 1):
            found = self.groups.new_empty(len(self.groups), tokens.size(-1))
            if kernels.given(self, tokens, found):
                return found
        if self._is_for_columns:
            return self.head.log_probs(self.features).gather(1, tokens.expand(len(self.features), -1))
        return self._given(tokens)

    def candidates(self, k: int, tokens: Tensor) -> Candidates:
        return Candidates(*self.topk(k), self.log_prob_of(tokens))

    @torch.no_grad()
    def beam_candidates(self, k: int, scores: Tensor, beam: int, without: Tensor) -> tuple[Tensor, Tensor]:
        """``OutputHead.beam_candidates``."""
        if kernels.serves(self.head, self.features, k, beam):
            found = self._by_kernels(k, scores, beam, without)
            if found is not None:
                return found
        if self._is_for_columns:
            return OutputHead.beam_candidates(self.head, self.features, k, scores, beam, without)
        beams = Beams(scores, beam, self.head.codebook_slots[without])
        best, slots = best_first(self.groups, self.head.levels, self.inputs, k, beams)
        return best, self.head.token_of_slot(slots).clamp(min=0)

    @torch.no_grad()
    def begin(self, log_probs: Tensor, table: Tensor, special: Tensor) -> None:
        if kernels.serves(self.head, self.features, 1, 1):
            log_probs.fill_(torch.inf)
            if kernels.given(self, special, log_probs[:, : len(special)]):
                return
        super().begin(log_probs, table, special)

    @torch.no_grad()
    def finish(self, log_probs: Tensor, table: Tensor, special: Tensor, scores: Tensor, beam: int) -> None:
        others = slice(len(special), None)
        left = log_probs[:, others]
        if kernels.serves(self.head, self.features, left.size(1), beam) and kernels.continuations(
            self, scores, beam, special, left, table[:, others], marked=True
        ):
            return
        super().finish(log_probs, table, special, scores, beam)

    def _by_kernels(self, k: int, scores: Tensor, beam: int, without: Tensor) -> tuple[Tensor, Tensor] | None:
        best = self.groups.new_empty(len(self.groups), k)
        tokens = torch.empty_like(best, dtype=torch.long)
        served = kernels.continuations(self, scores, beam, without, best, tokens, marked=False)
        return (best, tokens) if served else None

    def _given(self, tokens: Tensor) -> Tensor:
        """``log_prob_of``; prefixes that tokens share are opened once a row."""
        head, groups = self.head, self.groups
        n = len(groups)
        digits = head.digits(tokens).expand(n, -1, -1)
        total = groups.gather(1, digits[..., 0])
        rows = torch.arange(n, device=tokens.device).unsqueeze(1).expand_as(total)
        for h, (level, x) in enumerate(zip(head.levels, self.inputs, strict=True), start=1):
            # Pairs of a row and a prefix, as one number.
            pairs = rows * level.prefixes + head.prefix(digits, h)
            once, which = pairs.unique(return_inverse=True)
            opened = level.log_softmax(x, once % level.prefixes, once // level.prefixes)
            total = total + opened[which, digits[..., h]]
        return total


class RestrictedCascadeReading(CascadeReading):
    """A cascade's, of which some tokens may be found: groups that have none of them are not opened.

    Args:
        head: the head.
        features: (N, d).
        allowed: these tokens.
    """

    def __init__(self, head: CascadeHead, features: Tensor, allowed: Allowed) -> None:
        super().__init__(head, features)
        self.allowed = allowed

    @cached_property
    def _levels(self) -> list[Tensor]:
        return self.allowed.levels(self.head, self.head.codebook, self.features.device)

    @cached_property
    def _columns(self) -> Tensor:
        """(N, V): log-probabilities of what may be found."""
        is_allowed = self.allowed.on(self.features.device)
        return self.head.log_probs(self.features).masked_fill_(~is_allowed, -torch.inf)

    @torch.no_grad()
    def topk(self, k: int) -> tuple[Tensor, Tensor]:
        """As the head's; -inf, of no token in particular, where fewer are allowed."""
        if self._is_for_columns:
            best, tokens = self._columns.topk(k, dim=1)
            return best, tokens
        return self._opened(k, None)

    @torch.no_grad()
    def beam_candidates(self, k: int, scores: Tensor, beam: int, without: Tensor) -> tuple[Tensor, Tensor]:
        if self._is_for_columns:
            found, tokens = self._columns.topk(min(self.head.vocab_size, k + len(without)), dim=1)
            found, place = found.masked_fill(torch.isin(tokens, without), -torch.inf).topk(k, dim=1)
            return found, tokens.gather(1, place)
        return self._opened(k, Beams(scores, beam, self.head.codebook_slots[without]))

    def begin(self, log_probs: Tensor, table: Tensor, special: Tensor) -> None:
        Reading.begin(self, log_probs, table, special)

    def finish(self, log_probs: Tensor, table: Tensor, special: Tensor, scores: Tensor, beam: int) -> None:
        Reading.finish(self, log_probs, table, special, scores, beam)

    def _opened(self, k: int, beams: Beams | None) -> tuple[Tensor, Tensor]:
        first, *below = self._levels
        groups = self.groups.masked_fill(~first, -torch.inf)
        best, slots = best_first(groups, self.head.levels, self.inputs, k, beams, below)
        return best, self.head.token_of_slot(slots).clamp(min=0)
