"""One step of beam search by itself: what a head and a search do with features that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from fairseq.search import BeamSearch
from fairseq.sequence_generator import EnsembleModel
from torch import Tensor, nn

from mhe_fairseq.heads import OutputHead
from mhe_fairseq.models.decoder import HeadDecoderMixin
from mhe_fairseq.search.compact import CompactBeamSearch, CompactEnsemble
from tests.search.toys import PAD, UNK, dictionary

Found = tuple[Tensor, Tensor, Tensor]


class Given(HeadDecoderMixin, nn.Module):
    """A decoder that has nothing but features, (B * beam, d)."""

    def __init__(self, head: OutputHead, features: Tensor) -> None:
        super().__init__()
        self.head = head
        self.features = features

    def forward(self, *_: Any, features_only: bool = False, **__: Any) -> tuple[Tensor, dict[str, Any]]:
        features = self.features.unsqueeze(1)
        return features if features_only else self.decoding(features), {"attn": None}


class Model(nn.Module):
    def __init__(self, head: OutputHead, features: Tensor) -> None:
        super().__init__()
        self.decoder = Given(head, features)

    def max_decoder_positions(self) -> int:
        return 100

    def get_normalized_probs(self, net_output: Any, log_probs: bool, sample: Any = None) -> Tensor:
        return self.decoder.get_normalized_probs(net_output, log_probs, sample)


class Step:
    """A step of a search by tables, or of fairseq's own.

    Args:
        heads: of the ensemble.
        features: (B * beam, d) for each.
        beam: hypotheses of a sentence.
        compact: by tables.
    """

    def __init__(
        self, heads: Sequence[OutputHead], features: Sequence[Tensor], beam: int, compact: bool
    ) -> None:
        models: Any = [Model(head, x) for head, x in zip(heads, features, strict=True)]
        words = dictionary(heads[0].vocab_size)
        self.beam = beam
        self.tokens = torch.zeros(len(features[0]), 2, dtype=torch.long, device=features[0].device)
        self.model: Any = CompactEnsemble(models, beam) if compact else EnsembleModel(models)
        self.search: Any = CompactBeamSearch(words, self.model) if compact else BeamSearch(words)

    @torch.no_grad()
    def run(self, scores: Tensor, step: int = 1) -> Found:
        """What ``SequenceGenerator`` does from features to continuations. Shape of scores: (B, beam, 1)."""
        states: Any = [{} for _ in self.model.models]
        lprobs, _ = self.model.forward_decoder(self.tokens, [], states, 1.0)
        lprobs[lprobs != lprobs] = torch.tensor(-math.inf).to(lprobs)
        lprobs[:, PAD] = -math.inf
        lprobs[:, UNK] -= 1.0
        found: Found = self.search.step(step, lprobs.view(len(scores), self.beam, -1), scores)
        return found
