"""Lists of sentences through fairseq's hub: each one answered, in order, in bounded memory.

fairseq's own interface loses lines where it skips the over-long ones, and the answers after them move up; it
reads its batches' size from the training; and it keeps every hypothesis of a list, with its attention, until
the last is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from fairseq import hub_utils
from fairseq.models import FairseqEncoderDecoderModel
from torch import Tensor

from mhe_fairseq.errors import MHEError

#: Sentences whose hypotheses are kept at a time.
CHUNK = 512

#: They belong to the loaded model; fairseq would take them here too, and do nothing with them.
_OF_LOADING = ("batch_size", "max_sentences", "max_tokens")


class HubInterface(hub_utils.GeneratorHubInterface):
    """fairseq's, for models with a head. How many sentences, or tokens, are searched at a time is said when
    the model is loaded, ``from_pretrained(..., batch_size=32, max_tokens=4000)``; else it is as in training.
    """

    def sample(
        self, sentences: str | Sequence[str], beam: int = 1, verbose: bool = False, **kwargs: Any
    ) -> Any:
        """The best hypothesis of each sentence, as text. ``translate`` is the same with a beam of 5.

        Args:
            sentences: one, or a list of them. In translation one without a token is answered by an empty one.
            beam: hypotheses in the search.
            verbose: log every hypothesis.
            kwargs: of ``generate``, and fairseq's of generation: ``lenpen``, ``max_len_b``, ...

        Returns:
            str, or as many as sentences, in their order.

        Raises:
            MHEError: a sentence is longer than the model takes; before any was searched.
        """
        if isinstance(sentences, str):
            return self.sample([sentences], beam, verbose, **kwargs)[0]
        encoded = [self.encode(sentence) for sentence in sentences]
        self._check(encoded, kwargs)
        wanted = list(range(len(encoded)))
        if any(isinstance(model, FairseqEncoderDecoderModel) for model in self.models):
            # The end of the sentence is one.
            wanted = [number for number in wanted if encoded[number].numel() > 1]
        texts = [""] * len(encoded)
        for begin in range(0, len(wanted), CHUNK):
            numbers = wanted[begin : begin + CHUNK]
            found = self.generate([encoded[number] for number in numbers], beam, verbose, **kwargs)
            for number, hypotheses in zip(numbers, found, strict=True):
                if hypotheses:
                    texts[number] = self.decode(hypotheses[0]["tokens"])
                # omegaconf's exceptions hold the frames of their callers, fairseq's with all answers too,
                # until the garbage is collected.
                hypotheses.clear()
        return texts

    def generate(
        self,
        tokenized_sentences: Any,
        beam: int = 5,
        verbose: bool = False,
        skip_invalid_size_inputs: bool = False,
        **kwargs: Any,
    ) -> Any:
        """Hypotheses of each sentence, best first.

        Args:
            tokenized_sentences: (T,) long, or a list of such.
            beam: hypotheses in the search.
            verbose: log every hypothesis.
            skip_invalid_size_inputs: answer a sentence that is longer than the model takes by no hypothesis.
            kwargs: fairseq's of generation.

        Returns:
            A list of hypotheses, fairseq's dicts, or as many lists as sentences, in their order.

        Raises:
            MHEError: a sentence is longer than the model takes.
        """
        if torch.is_tensor(tokenized_sentences) and tokenized_sentences.dim() == 1:
            return self.generate([tokenized_sentences], beam, verbose, skip_invalid_size_inputs, **kwargs)[0]
        sentences = list(tokenized_sentences)
        self._check(sentences, {**kwargs, "skip_invalid_size_inputs": skip_invalid_size_inputs})
        numbers = [number for number, each in enumerate(sentences) if each.numel() <= self._longest()]
        answers: list[Any] = [[] for _ in sentences]
        if numbers:
            found = self._search([sentences[number] for number in numbers], beam, verbose, **kwargs)
            for number, hypotheses in zip(numbers, found, strict=True):
                answers[number] = hypotheses
        return answers

    def _search(self, sentences: list[Tensor], beam: int, verbose: bool, **kwargs: Any) -> Any:
        """fairseq's ``generate``, of sentences that are none too long."""
        return super().generate(sentences, beam, verbose, **kwargs)

    def string(self, tokens: Tensor) -> str:
        """As fairseq's, without what a task has hypotheses begin with. Shape: (T,) long."""
        unsaid: set[int] = getattr(self.task, "unsaid", set())
        text: str = self.task.target_dictionary.string(tokens, extra_symbols_to_ignore=unsaid)
        return text

    def _longest(self) -> int:
        """Tokens of a sentence, its end included."""
        limit = self.max_positions
        return int(limit[0] if isinstance(limit, tuple | list) else limit)

    def _check(self, sentences: Sequence[Tensor], options: dict[str, Any]) -> None:
        for name in _OF_LOADING:
            if name in options:
                meant = "max_tokens" if name == "max_tokens" else "batch_size"
                raise MHEError(
                    f"{name}={options[name]} is given when the model is loaded, "
                    f"from_pretrained(..., {meant}={options[name]}), not with the sentences"
                )
        # A score of nothing could not be told from another.
        is_skipped = options.get("skip_invalid_size_inputs") and not options.get("score_reference")
        longest = self._longest()
        over = [number for number, each in enumerate(sentences) if each.numel() > longest]
        if over and not is_skipped:
            more = f" and {len(over) - 1} more" if len(over) > 1 else ""
            otherwise = (
                "shorten it"
                if options.get("score_reference")
                else "shorten it, or give skip_invalid_size_inputs=True, which answers it by an empty one"
            )
            raise MHEError(
                f"sentence {over[0] + 1} of {len(sentences)}{more} is too long: it has "
                f"{sentences[over[0]].numel():,} tokens and the model takes {longest:,}; {otherwise}"
            )

    def _build_batches(
        self, tokens: list[Tensor], skip_invalid_size_inputs: bool
    ) -> Iterator[dict[str, Any]]:
        lengths = torch.tensor([each.numel() for each in tokens])
        limits = self.cfg.dataset
        # fairseq refuses a list with a sentence of more tokens than a batch may have.
        most = None if limits.max_tokens is None else max(limits.max_tokens, int(lengths.max()))
        batches: Iterator[dict[str, Any]] = self.task.get_batch_iterator(
            dataset=self.task.build_dataset_for_inference(tokens, lengths),
            max_tokens=most,
            max_sentences=limits.batch_size,
            max_positions=self.max_positions,
            disable_iterator_cache=True,
        ).next_epoch_itr(shuffle=False)
        return batches


class HubMixin:
    """Before a model of fairseq's that generates: ``from_pretrained`` gives a ``HubInterface``."""

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path: str,
        checkpoint_file: str = "model.pt",
        data_name_or_path: str = ".",
        **kwargs: Any,
    ) -> HubInterface:
        """A trained model, to be asked from Python.

        Args:
            model_name_or_path: folder of checkpoints.
            checkpoint_file: in it; several, with ':', are an ensemble.
            data_name_or_path: folder with the dictionaries; one that begins with '.' is sought in the former.
            kwargs: in place of what the checkpoint has: ``batch_size``, ``max_tokens``; ``bpe`` and what it
                needs, such as ``sentencepiece_model``; ``task={"_name": "mhe_translation"}``.
        """
        # Translating while validating wants a tokenizer's files, which need not be here.
        kwargs.setdefault("eval_bleu", False)
        loaded = hub_utils.from_pretrained(model_name_or_path, checkpoint_file, data_name_or_path, **kwargs)
        return cls.hub_interface(loaded["args"], loaded["task"], loaded["models"])

    @classmethod
    def hub_interface(cls, cfg: Any, task: Any, models: list[Any]) -> HubInterface:
        """What ``from_pretrained`` gives."""
        return HubInterface(cfg, task, models)
