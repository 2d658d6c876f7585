"""fairseq's hub interfaces of BART, for models with a head."""

from __future__ import annotations

from typing import Any

from fairseq.hub_utils import GeneratorHubInterface
from fairseq.models.bart import BARTHubInterface
from torch import Tensor

from mhe_fairseq.models.hub import HubInterface


class _Words:
    """In place of a bpe: the text is in the dictionary's symbols already."""

    encode = decode = staticmethod(str)


class BARTHub(HubInterface, BARTHubInterface):
    """``fill_mask``, ``sample``, ``predict``, ``extract_features`` of fairseq's BART; lists of sentences are
    answered as ``HubInterface`` answers them."""

    bpe: Any

    def __init__(self, cfg: Any, task: Any, models: list[Any]) -> None:
        GeneratorHubInterface.__init__(self, cfg, task, models)
        self.model = self.models[0]
        if self.bpe is None:
            self.bpe = _Words()


class TranslatingBARTHub(BARTHub):
    """Of a task that translates: asked as ``fairseq-generate`` asks, where fairseq's own puts ``<s>`` before
    every sentence and every hypothesis, which the training data of these tasks has not."""

    def encode(self, sentence: str) -> Tensor:
        """Tokens of one sentence, ``</s>`` last. Shape: (T,) long."""
        return GeneratorHubInterface.encode(self, sentence)

    def decode(self, tokens: Tensor) -> str:
        """Text of tokens (T,) long, without the symbol of the language, which ends a sentence of mBART."""
        end = self.tgt_dict.index(f"[{getattr(self.cfg.task, 'target_lang', None)}]")
        if end != self.tgt_dict.unk():
            tokens = tokens[tokens != end]
        text: str = GeneratorHubInterface.decode(self, tokens)
        return text

    def _search(self, sentences: list[Tensor], beam: int, verbose: bool, **kwargs: Any) -> Any:
        return GeneratorHubInterface.generate(self, sentences, beam, verbose, **kwargs)
