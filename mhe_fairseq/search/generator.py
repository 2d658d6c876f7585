"""fairseq's sequence generators, searching compact tables where that gives the same result."""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from fairseq.search import BeamSearch
from fairseq.sequence_generator import (
    EnsembleModel,
    EnsembleModelWithAlignment,
    SequenceGenerator,
    SequenceGeneratorWithAlignment,
)
from torch import Tensor

from mhe_fairseq.heads import Allowed, OutputHead
from mhe_fairseq.search.compact import END, SPECIALS, CompactBeamSearch, CompactEnsemble, Numbers
from mhe_fairseq.search.restricted import forbid, restricted

logger = logging.getLogger(__name__)


class CompactGeneratorMixin:
    """Before a fairseq generator: hands its search few candidates of each hypothesis, when it can.

    What needs columns of all V tokens (constraints, sampling, n-gram blocking, ...) goes through the V-wide
    search as ever; which way was taken, and why, is logged once.
    """

    model: Any
    beam_size: int
    vocab_size: int
    pad: int
    #: Tokens that are searched; None: all. Set after a generator is built.
    allowed: Allowed | None = None
    _said: str | None = None

    def why_wide(self) -> str | None:
        """What forbids the compact search, in a few words; None when nothing does."""
        generator: Any = self
        if type(generator.model) not in (EnsembleModel, EnsembleModelWithAlignment):
            return f"{type(generator.model).__name__} combines the models in a way of its own"
        for model in generator.model.models:
            head = getattr(getattr(model, "decoder", None), "head", None)
            if not isinstance(head, OutputHead):
                return f"{type(model).__name__} has no head that finds the best tokens by itself"
            if (reason := head.why_wide(self.beam_size)) is not None:
                return reason
        if type(generator.search) is not BeamSearch:
            return f"{type(generator.search).__name__}"
        if generator.lm_model is not None:
            return "a language model's scores are added"
        if generator.repeat_ngram_blocker is not None:
            return "--no-repeat-ngram-size"
        if generator.token_indices_to_suppress is not None:
            return "suppressed tokens"
        if generator.temperature != 1.0:
            return f"--temperature {generator.temperature}"
        words = generator.tgt_dict
        symbols = (words.bos(), generator.pad, words.eos(), generator.unk)
        if symbols != tuple(range(SPECIALS)):
            return f"special symbols bos, pad, eos, unk are {symbols} and not 0, 1, 2, 3"
        if generator.eos != END and generator.eos < SPECIALS:
            return f"{words[generator.eos]} ends hypotheses"
        if not CompactEnsemble.fits(generator.vocab_size, generator.beam_size):
            return f"a vocabulary of {generator.vocab_size} tokens is too small for beam {self.beam_size}"
        if self.allowed is not None and not CompactEnsemble.fits(self.allowed.others, self.beam_size):
            return f"{self.allowed.others} allowed tokens are too few for beam {self.beam_size}"
        return None

    def _generate(
        self,
        sample: dict[str, Any],
        prefix_tokens: Tensor | None = None,
        constraints: Tensor | None = None,
        bos_token: int | None = None,
    ) -> list[list[dict[str, Tensor]]]:
        # Asked anew every time: users set attributes of generators.
        reason = self.why_wide()
        self._say(reason)
        steps = 0 if prefix_tokens is None else prefix_tokens.size(1)
        if reason is not None:
            return super(CompactGeneratorMixin, self._wide(steps))._generate(  # type: ignore[misc]
                sample, prefix_tokens, constraints, bos_token
            )
        generator = self._compact(steps)
        numbers = generator.model.numbers
        if prefix_tokens is not None:
            prefix_tokens = numbers(prefix_tokens)
        if bos_token is not None:
            bos_token = int(numbers(torch.tensor(bos_token)))
        found = super(CompactGeneratorMixin, generator)._generate(  # type: ignore[misc]
            sample, prefix_tokens, constraints, bos_token
        )
        for hypothesis in (each for sentence in found for each in sentence):
            hypothesis["tokens"] = numbers(hypothesis["tokens"])
        return found

    def _copy(self) -> Any:
        """For one batch: two threads may share a generator, and what is kept of a table goes with it."""
        generator: Any = copy.copy(self)
        # Modules are set in it, and a copied module shares them with the one it was copied from.
        generator._modules = dict(generator._modules)
        return generator

    def _wide(self, prefix_steps: int) -> CompactGeneratorMixin:
        """This generator, finding only what is allowed."""
        if self.allowed is None:
            return self
        generator = self._copy()
        generator.model = restricted(generator.model, self.allowed, prefix_steps)
        wide: CompactGeneratorMixin = generator
        return wide

    def _compact(self, prefix_steps: int) -> Any:
        """This generator, reading tables."""
        generator = self._copy()
        numbers = Numbers(generator.eos)
        generator.eos = END
        models = generator.model.models
        generator.model = CompactEnsemble(models, self.beam_size, numbers, self.allowed, prefix_steps)
        generator.search = CompactBeamSearch(generator.tgt_dict, generator.model)
        generator.vocab_size = generator.model.width
        return generator

    def _prefix_tokens(
        self,
        step: int,
        lprobs: Tensor,
        scores: Tensor,
        tokens: Tensor,
        prefix_tokens: Tensor,
        beam_size: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As fairseq's, which reads the prefix as columns: each gets a column of the table first."""
        given = prefix_tokens[:, step]
        if isinstance(self.model, CompactEnsemble):
            prefix_tokens = prefix_tokens.clone()
            columns = self.model.give_columns(lprobs, given.repeat_interleave(beam_size))
            prefix_tokens[:, step] = columns[::beam_size]
        lprobs, tokens, scores = super()._prefix_tokens(  # type: ignore[misc]
            step, lprobs, scores, tokens, prefix_tokens, beam_size
        )
        if self.allowed is not None:
            is_compact, free = isinstance(self.model, CompactEnsemble), given.eq(self.pad)
            free = free.repeat_interleave(beam_size)
            forbid(lprobs, self.model.columns if is_compact else self.allowed.on(lprobs.device), free)
        return lprobs, tokens, scores

    def _say(self, reason: str | None) -> None:
        said = "compact search" if reason is None else f"V-wide search: {reason}"
        if self.allowed is not None:
            said += f"; of {len(self.allowed.mask):,} tokens {self.allowed.count:,} are searched"
            said += f", {self.allowed.name}" if self.allowed.name else ""
        if said != self._said:
            self._said = said
            logger.info("mhe: %s", said)


class CompactGenerator(CompactGeneratorMixin, SequenceGenerator):
    """``SequenceGenerator`` with compact search."""


class CompactGeneratorWithAlignment(SequenceGeneratorWithAlignment, CompactGenerator):
    """``SequenceGeneratorWithAlignment`` with compact search. It comes first: its ``generate`` calls the
    ``_generate`` of the class after it."""
