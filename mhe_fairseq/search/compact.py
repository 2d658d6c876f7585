"""A table of few tokens in place of V columns: what fairseq's beam search needs, and no more."""

from __future__ import annotations

import math
from typing import Any

import torch
from fairseq.search import BeamSearch
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor

from mhe_fairseq.heads import Allowed, OutputHead
from mhe_fairseq.heads.reading import Reading
from mhe_fairseq.search.restricted import forbid

#: The special symbols bos, pad, eos and unk are tokens 0..3 and have these columns of every table, so
#: that what fairseq does to them by their number (length limits, penalties) falls on the right column.
SPECIALS = 4

#: The column of the symbol that ends a hypothesis.
END = 2


class Numbers:
    """Tokens as the search numbers them: as the dictionary does, but that the symbol which ends hypotheses
    is ``END``, and ``END`` has that symbol's number. So of mBART's languages, whose symbols end their
    sentences; where eos does, nothing is changed.

    Args:
        end: the dictionary's number of the symbol that ends hypotheses.
    """

    def __init__(self, end: int = END) -> None:
        self._end = end

    def __call__(self, tokens: Tensor) -> Tensor:
        """From the dictionary's numbers to the search's, and back. Shape: (...) long -> (...) long."""
        if self._end == END:
            return tokens
        return torch.where(tokens == END, self._end, torch.where(tokens == self._end, END, tokens))


class CompactEnsemble(EnsembleModel):
    """fairseq's ensemble, whose log-probabilities are of candidates.

    A table has 4 columns for the special symbols and C for other tokens, the C best of each hypothesis
    among them. Search keeps the 2 x beam best continuations of all hypotheses of a sentence; each of
    these is a special symbol or one of the 2 x beam best others of its hypothesis, so C = 2 x beam loses
    nothing.

    Args:
        models: each with ``decoder.head``.
        beam_size: of the search.
        allowed: tokens that may be found; None: all.
        prefix_steps: in so many steps tokens may be given, which are taken as they are: special symbols that
            are not allowed are left in the tables then.
        numbers: the search's, which tokens given to the ensemble have.
    """

    #: (rows, 4 + C) long: the token of each column of the last table given out, the dictionary's number.
    table: Tensor

    def __init__(
        self,
        models: Any,
        beam_size: int,
        numbers: Numbers | None = None,
        allowed: Allowed | None = None,
        prefix_steps: int = 0,
    ) -> None:
        super().__init__(models)
        self.allowed = allowed
        self.prefix_steps = prefix_steps
        self.wanted = 2 * beam_size
        self.heads: list[OutputHead] = [model.decoder.head for model in models]
        self.numbers = numbers or Numbers()
        # Made once a search: heads keep what they work out of these very tensors.
        device = self.heads[0].codebook_slots.device
        self._specials = self.numbers(torch.arange(SPECIALS, device=device))
        self._kept: Tensor | None = None

    @property
    def width(self) -> int:
        """4 + C."""
        return SPECIALS + self.wanted

    @property
    def columns(self) -> Tensor:
        """(4 + C,) bool: columns of a table that may be found: all candidates, and the end."""
        assert self.allowed is not None
        mask = self.allowed.on(self._specials.device)
        columns = torch.cat([mask[self._specials], mask.new_ones(self.wanted)])
        columns[END] = True
        return columns

    @classmethod
    def fits(cls, vocab_size: int, beam_size: int) -> bool:
        """Whether there are enough tokens for a table."""
        return 2 * SPECIALS + 2 * beam_size < vocab_size

    def forward_decoder(
        self,
        tokens: Tensor,
        encoder_outs: list[dict[str, list[Tensor]]],
        incremental_states: list[dict[str, dict[str, Tensor | None]]],
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor | None]:
        """As fairseq's, with (rows, 4 + C) log-probabilities. ``temperature`` must be 1."""
        readings, attention, tokens = [], None, self.numbers(tokens)
        for i, model in enumerate(self.models):
            encoder_out = encoder_outs[i] if self.has_encoder() else None
            out, extra = model.decoder(
                tokens,
                encoder_out=encoder_out,
                incremental_state=incremental_states[i],
                features_only=True,
            )
            reading = self.heads[i].read(out[:, -1])
            readings.append(reading if self.allowed is None else reading.only(self.allowed))
            attn = extra["attn"][0] if extra and extra.get("attn") else None
            if attn is not None:
                attention = attn[:, -1] if attention is None else attention + attn[:, -1]
        if attention is not None and self.models_size > 1:
            attention = attention / self.models_size
        self._readings = readings
        log_probs = self._of_one(readings[0]) if self.models_size == 1 else self._of_many(readings)
        if self.allowed is not None and tokens.size(1) > self.prefix_steps:
            forbid(log_probs, self.columns)
        return log_probs, attention

    def give_columns(self, log_probs: Tensor, tokens: Tensor) -> Tensor:
        """Make the last table hold a token in every row, in place of its first candidate if need be.

        Shape: log_probs (rows, 4 + C), written to; tokens (rows,) -> (rows,), the columns.
        """
        names = self.numbers(tokens)
        value = self._mean([each.log_prob_of(names.unsqueeze(1)) for each in self._readings]).squeeze(1)
        # As fairseq does with the columns that are there already.
        value = value.masked_fill(value.isnan(), -torch.inf)
        other = tokens >= SPECIALS
        self.table[:, SPECIALS] = torch.where(other, names, self.table[:, SPECIALS])
        log_probs[:, SPECIALS] = torch.where(other, value, log_probs[:, SPECIALS])
        return tokens.where(~other, torch.full_like(tokens, SPECIALS))

    def complete(self, lprobs: Tensor, scores: Tensor | None) -> None:
        """Fill in the candidates of the last table that were left for when scores are known, if they were.

        Args:
            lprobs: (B, beam, 4 + C), the last table given out, as fairseq has changed it; written to.
            scores: (B, beam) of the hypotheses; None: all are the same, as in the first step.
        """
        if self.models_size > 1:
            return
        beam = lprobs.size(1)
        if scores is None:
            # The hypotheses are copies of each other, of which search reads the first.
            scores = torch.full_like(lprobs[..., 0], -torch.inf)
            scores[:, 0] = 0.0
        by_row = scores.reshape(-1) if scores.stride(0) != beam * scores.stride(1) else _rows_of(scores)
        self._readings[0].finish(lprobs.view(-1, self.width), self.table, self._specials, by_row, beam)

    def _of_one(self, reading: Reading) -> Tensor:
        """Which candidates matter may depend on what the hypotheses score: then they are left, +inf."""
        rows = len(reading.features)
        if self._kept is None or len(self._kept) < rows:
            self._kept = self._specials.new_full((rows, self.width), SPECIALS)
            self._kept[:, :SPECIALS] = self._specials
        # Sentences that are finished are left out, so that later tables have fewer rows.
        self.table = self._kept[:rows]
        kind = torch.promote_types(reading.features.dtype, torch.float32)
        log_probs = reading.features.new_empty(rows, self.width, dtype=kind)
        reading.begin(log_probs, self.table, self._specials)
        return log_probs

    def _of_many(self, readings: list[Reading]) -> Tensor:
        """The mean probability of the models. Candidates are the best tokens of each, scored by all. A token
        that is none of them is in no model better than that model's last candidate, so in the mean it is
        not better than the mean of those; while that could matter, more candidates are asked for."""
        vocab = self.heads[0].vocab_size
        k = self.wanted + SPECIALS
        while True:
            found = [each.candidates(k, self._specials) for each in readings]
            given = self._mean([each.given for each in found])
            tokens = torch.cat([each.tokens for each in found], dim=1)
            scores = self._mean([each.log_prob_of(tokens) for each in readings])
            if self.allowed is not None:
                # A model that allows fewer than k filled up with others.
                scores = scores.masked_fill(~self.allowed.on(tokens.device)[tokens], -torch.inf)
            scores, tokens = _best_others(*_without_copies(scores, tokens), self._specials, self.wanted)
            bound = self._mean([each.scores[:, -1] for each in found])
            # Written so that NaN does not go round for ever.
            if k >= vocab or not bool((bound > scores[:, -1]).any()):
                return self._table(given, scores, tokens)
            k = min(vocab, 4 * k)

    def _mean(self, log_probs: list[Tensor]) -> Tensor:
        return torch.logsumexp(torch.stack(log_probs), dim=0) - math.log(self.models_size)

    def _table(self, given: Tensor, scores: Tensor, tokens: Tensor) -> Tensor:
        self.table = torch.cat([self._specials.expand(len(tokens), -1), tokens], dim=1)
        return torch.cat([given, scores], dim=1)


class CompactBeamSearch(BeamSearch):
    """fairseq's beam search over the tables of a ``CompactEnsemble``."""

    def __init__(self, tgt_dict: Any, ensemble: CompactEnsemble) -> None:
        super().__init__(tgt_dict)
        # In a tuple: the ensemble is the generator's, and no part of the search.
        self._ensemble = (ensemble,)

    def step(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor | None,
        prev_output_tokens: Tensor | None = None,
        original_batch_idxs: Tensor | None = None,
        candidate_multiple: int = 2,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As fairseq's; lprobs (B, beam, 4 + C). The tokens returned have the search's numbers."""
        batch, beam, _ = lprobs.shape
        known = None if step == 0 or scores is None else scores[:, :, step - 1]
        self._ensemble[0].complete(lprobs, known)
        # As fairseq's, but that a column's token is looked up.
        if known is None:
            totals = lprobs[:, :1].flatten(1)
        else:
            totals = (lprobs + known.unsqueeze(-1)).flatten(1)
        best, places = totals.topk(min(candidate_multiple * beam, totals.size(1) - 1))
        tokens = self._ensemble[0].table.view(batch, -1).gather(1, places)
        return best, self._ensemble[0].numbers(tokens), places.div(lprobs.size(2), rounding_mode="trunc")


def _rows_of(scores: Tensor) -> Tensor:
    """(B, beam), whose rows stand one after the other with equal gaps, as (B * beam,), without a copy."""
    return scores.as_strided((scores.numel(),), (scores.stride(1),))


def _best_others(scores: Tensor, tokens: Tensor, special: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The best of them that are not ``special``. Shape: (R, k), (R, k) -> (R, count), (R, count)."""
    scores, place = scores.masked_fill(torch.isin(tokens, special), -torch.inf).topk(count, dim=1)
    return scores, tokens.gather(1, place)


def _without_copies(scores: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """-inf for all but one of a row's equal tokens. Shape: (R, k), (R, k) -> the same, in another order."""
    tokens, order = tokens.sort(dim=1)
    scores = scores.gather(1, order)
    scores[:, 1:].masked_fill_(tokens[:, 1:] == tokens[:, :-1], -torch.inf)
    return scores, tokens
