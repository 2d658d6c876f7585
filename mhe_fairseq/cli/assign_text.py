"""The text that `mhe assign` learns from: of one target side, or of all pairs of a many-to-many training."""

from __future__ import annotations

import argparse
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

import numpy as np

from mhe_fairseq.cli.data import DataDirectory, read_dictionary
from mhe_fairseq.cli.pairs import PairsDirectory
from mhe_fairseq.coding.assign import (
    Floats,
    Ints,
    Progress,
    context_vectors,
    count_pairs,
    count_tokens,
    vectors_of_pairs,
)
from mhe_fairseq.errors import MHEError
from mhe_fairseq.tasks.binarised import BinarisedText

if TYPE_CHECKING:
    from fairseq.data import Dictionary

METHODS = ("uniform", "temperature", "concat", "RoundRobin")

#: fairseq's, unless told.
TEMPERATURE = 1.5


class Text(Protocol):
    """What is learnt from."""

    #: As the task has it after loading.
    dictionary: Dictionary
    #: language -> (V,) counts of what was read of it; empty for one language.
    by_language: dict[str, Ints]

    def count(self, vocab_size: int, progress: Progress) -> Ints:
        """How often each token occurs in the targets. Shape: -> (V,)."""

    def neighbours(
        self, vocab_size: int, contexts: int, seed: int, progress: Progress
    ) -> tuple[Ints, Floats, str]:
        """Weights (V,) and vectors (V, dim) for clusters, and in words what they are of. After ``count``."""


class OneText:
    """Of one language, ``--target-lang``; with a joined dictionary the other side's too, for clusters: a row
    of a group is in the input embeddings of both sides, where the sides share them.

    Args:
        data: where it is.
        dictionary: as the task has it.
        target_only: clusters are of the target side alone.
    """

    def __init__(self, data: DataDirectory, dictionary: Dictionary, target_only: bool) -> None:
        self._data, self._target_only = data, target_only
        self.dictionary = dictionary
        self.by_language: dict[str, Ints] = {}

    @classmethod
    def of(cls, args: argparse.Namespace) -> OneText:
        """For the flags of `mhe assign`.

        Raises:
            MHEError: see ``DataDirectory`` and ``read_dictionary``; flags that are for many pairs.
        """
        for name in ("langs", "lang_dict", "fixed_dictionary", "sampling_method", "sampling_temperature"):
            if getattr(args, name) is not None:
                raise MHEError(f"--{name.replace('_', '-')} is for --lang-pairs, which is missing")
        data = DataDirectory(args.data, args.target_lang)
        return cls(data, read_dictionary(data.dictionary, args.add_symbol), args.target_only)

    def count(self, vocab_size: int, progress: Progress) -> Ints:
        self._text = BinarisedText(self._data.text_prefixes())
        self._counts = count_tokens(self._text, vocab_size, progress, self._text.tokens)
        return self._counts

    def neighbours(
        self, vocab_size: int, contexts: int, seed: int, progress: Progress
    ) -> tuple[Ints, Floats, str]:
        text, weights = self._text, self._counts
        others = [] if self._target_only else self._data.joined_prefixes()
        if others:
            text = BinarisedText(self._data.text_prefixes() + others)
            weights = count_tokens(text, vocab_size, progress, text.tokens)
        vectors = context_vectors(text, weights, contexts=contexts, seed=seed, progress=progress)
        words = f"neighbours in {int(weights.sum()):,} tokens{' of both sides' if others else ''}"
        return weights, vectors, words


class ManyTexts:
    """Of the target sides of all pairs, each weighted as often as its sentences are drawn in training. A
    language that is no pair's target is clustered by its source sides, as with ``OneText``.

    Args:
        data: where it is.
        dictionary: as the task has it.
        target_only: clusters are of the target sides alone.
        method: of ``--sampling-method``.
        temperature: of ``--sampling-temperature``.
    """

    def __init__(
        self, data: PairsDirectory, dictionary: Dictionary, target_only: bool, method: str, temperature: float
    ) -> None:
        self._data, self._target_only = data, target_only
        self._method, self._temperature = method, temperature
        self.dictionary = dictionary
        self.by_language: dict[str, Ints] = {}

    @classmethod
    def of(cls, args: argparse.Namespace) -> ManyTexts:
        """For the flags of `mhe assign`.

        Raises:
            MHEError: pairs, languages, dictionaries or a temperature that are missing or do not fit.
        """
        if args.target_lang is not None:
            raise MHEError(
                f"--target-lang {args.target_lang} is for one pair, and --lang-pairs {args.lang_pairs} reads "
                "the targets of all; leave one out"
            )
        method, given = args.sampling_method or "concat", args.sampling_temperature
        if given is not None and method != "temperature":
            raise MHEError(f"--sampling-temperature {given} is for --sampling-method temperature; give both")
        temperature = TEMPERATURE if given is None else given
        if not 0 < temperature < np.inf:
            raise MHEError(f"--sampling-temperature must be a number above 0, got {given}")
        data = PairsDirectory.of(args)
        return cls(data, data.dictionary(args.add_symbol), args.target_only, method, temperature)

    @cached_property
    def _texts(self) -> list[tuple[str, BinarisedText, float]]:
        """The target language of each pair, its text, and how often a sentence of it is drawn: 1 for those
        that are drawn least."""
        texts = [
            (pair.split("-")[1], BinarisedText(self._data.prefixes(pair, target=True)))
            for pair in self._data.pairs
        ]
        drawn = weights([text.sentences for _, text in texts], self._method, self._temperature)
        return [(lang, text, weight) for (lang, text), weight in zip(texts, drawn, strict=True)]

    @cached_property
    def _sources(self) -> list[tuple[str, BinarisedText, float]]:
        """As ``_texts``, of languages that are no target."""
        targets = {lang for lang, _, _ in self._texts}
        return [
            (source, BinarisedText(self._data.prefixes(pair, target=False)), weight)
            for pair, (_, _, weight) in zip(self._data.pairs, self._texts, strict=True)
            if (source := pair.split("-")[0]) not in targets
        ]

    def count(self, vocab_size: int, progress: Progress) -> Ints:
        return self._weighted(self._texts, vocab_size, progress, self.by_language)

    def neighbours(
        self, vocab_size: int, contexts: int, seed: int, progress: Progress
    ) -> tuple[Ints, Floats, str]:
        texts = self._texts + ([] if self._target_only else self._sources)
        # Contexts are the most frequent tokens of all, as often as training reads them.
        of_all = self._weighted(texts, vocab_size, progress)
        pairs = sum(
            weight * count_pairs(text, of_all, contexts, progress=progress) for _, text, weight in texts
        )
        tokens = sum(text.tokens for _, text, _ in texts)
        words = f"neighbours in {tokens:,} tokens of {len(self._texts)} target sides"
        if len(texts) > len(self._texts):
            words += f" and {len(texts) - len(self._texts)} source sides"
        if self._method in ("temperature", "uniform"):
            is_hot = self._method == "temperature"
            words += f", drawn {f'at temperature {self._temperature:g}' if is_hot else 'uniformly'}"
        return of_all, vectors_of_pairs(pairs, seed=seed, progress=progress), words

    @staticmethod
    def _weighted(
        texts: list[tuple[str, BinarisedText, float]],
        vocab_size: int,
        progress: Progress,
        by_language: dict[str, Ints] | None = None,
    ) -> Ints:
        """(V,) counts as training meets the tokens; those of each language as they are, added there."""
        total = np.zeros(vocab_size)
        for lang, text, weight in texts:
            counts = count_tokens(text, vocab_size, progress, text.tokens)
            total += weight * counts
            if by_language is not None:
                by_language[lang] = by_language.get(lang, np.zeros(vocab_size, dtype=np.int64)) + counts
        found: Ints = np.rint(total).astype(np.int64)
        return found


def weights(sizes: list[int], method: str, temperature: float) -> list[float]:
    """How often a sentence of each pair is drawn in fairseq's training, as a multiple of the least.

    Args:
        sizes: sentences of each pair.
        method: of ``--sampling-method``; "concat" and "RoundRobin" draw each sentence once.
        temperature: T: a pair is drawn in proportion to its share of the sentences to the power 1 / T.
    """
    if method in ("concat", "RoundRobin"):
        return [1.0] * len(sizes)
    power = 1.0 / temperature if method == "temperature" else 0.0
    found = [(size / sum(sizes)) ** power / size if size else 0.0 for size in sizes]
    least = min((each for each in found if each), default=1.0)
    return [each / least for each in found]


def add_language_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags of many pairs, named as fairseq's task names them."""
    parser.add_argument(
        "--lang-pairs",
        metavar="AA-BB,...",
        help="pairs of --task mhe_translation_multi_simple_epoch: one codebook for the shared dictionary, "
        "from the target sides of all",
    )
    parser.add_argument(
        "--langs", metavar="AA,...", help="with --lang-pairs: the languages, in the training's order"
    )
    parser.add_argument("--lang-dict", metavar="FILE", help="the languages, one a line, in place of --langs")
    parser.add_argument(
        "--fixed-dictionary", metavar="DICT", help="with --lang-pairs: in place of dict.LANG.txt of the data"
    )
    parser.add_argument(
        "--lang-tok-style",
        choices=("multilingual", "mbart"),
        default="multilingual",
        help="how the task writes the tokens of languages (default multilingual)",
    )
    parser.add_argument(
        "--langtoks-specs", default="main", metavar="SPEC,...", help="kinds of such tokens (default main)"
    )
    parser.add_argument(
        "--sampling-method",
        choices=METHODS,
        help="with --lang-pairs: how the training draws its sentences; the text is weighted so (default "
        "concat)",
    )
    parser.add_argument(
        "--sampling-temperature",
        type=float,
        metavar="T",
        help="of --sampling-method temperature (default 1.5)",
    )
