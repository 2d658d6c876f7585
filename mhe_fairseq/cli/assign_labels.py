"""What `mhe assign --labels` learns from: the documents that have each label."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.coding.assign import Floats, Ints, Progress
from mhe_fairseq.coding.label_vectors import Lists, label_vectors
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.labelling import LabelNames
from mhe_fairseq.tasks.binarised import BinarisedText

if TYPE_CHECKING:
    from fairseq.data import Dictionary

#: Flags of `mhe assign` that are about text.
_OF_TEXT = ("shortlist", "from_checkpoint", "target_lang", "target_only", "add_symbol", "lang_pairs")


class LabelText:
    """Labels of documents, as ``Text`` of `mhe assign`.

    Args:
        folder: with input0/ and label/, as scripts/data/prepare_multilabel.py writes it.

    Raises:
        MHEError: it lacks a part of them.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for part in ("input0", "label"):
            for name in ("dict.txt", "train.idx", "train.bin"):
                if not (folder / part / name).is_file():
                    raise MHEError(
                        f"the data {folder} has no {part}/{name}; --labels reads documents with labels, as "
                        "scripts/data/prepare_multilabel.py writes them"
                    )
        self._labels = read_dictionary(folder / "label" / "dict.txt", [])
        #: Of labels alone: fairseq's own symbols are none.
        self.dictionary: Any = LabelNames(self._labels.symbols[self._labels.nspecial :])
        self.by_language: dict[str, Ints] = {}

    @classmethod
    def of(cls, args: argparse.Namespace) -> LabelText:
        """For the flags of `mhe assign`.

        Raises:
            MHEError: flags that are about text.
        """
        for name in _OF_TEXT:
            if getattr(args, name):
                raise MHEError(
                    f"--{name.replace('_', '-')} is about tokens of text; with --labels leave it out"
                )
        return cls(Path(args.data))

    def count(self, vocab_size: int, progress: Progress) -> Ints:
        """(V,) documents of each label."""
        found = np.bincount(self._read("label", self._labels).numbers, minlength=vocab_size)
        progress("counting labels", 1, 1)
        return found

    def neighbours(
        self, vocab_size: int, contexts: int, seed: int, progress: Progress
    ) -> tuple[Ints, Floats, str]:
        """(V,) documents of each label, and (V, dim) vectors of what is in them."""
        tokens = read_dictionary(self._folder / "input0" / "dict.txt", [])
        documents, labels = self._read("input0", tokens), self._read("label", self._labels)
        kept = len(tokens) - tokens.nspecial
        vectors = label_vectors(documents, labels, kept, vocab_size, seed=seed, progress=progress)
        counts = np.bincount(labels.numbers, minlength=vocab_size)
        return counts, vectors, f"labels by the words of {len(labels.sizes):,} documents"

    def _read(self, part: str, dictionary: Dictionary) -> Lists:
        """The training set, without fairseq's own symbols."""
        text = BinarisedText([str(self._folder / part / "train")])
        numbers = np.concatenate([*text, np.zeros(0, dtype=np.int64)])
        of = np.repeat(np.arange(text.sentences), text.sizes)
        real = numbers >= dictionary.nspecial
        sizes = np.bincount(of[real], minlength=text.sentences)
        return Lists(numbers[real] - dictionary.nspecial, sizes)
