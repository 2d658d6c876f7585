"""The text that `mhe analyze` reads: a split of binarised data in batches, and the training text's counts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.cli.checkpoint import translates
from mhe_fairseq.cli.data import DataDirectory
from mhe_fairseq.coding.assign import count_tokens
from mhe_fairseq.errors import MHEError
from mhe_fairseq.tasks.binarised import BinarisedText

#: Sentences of a part of the text are drawn; always the same ones, so that two runs compare.
_SEED = 1


def check_folders(data: str) -> None:
    """Refuse what is no folder.

    Raises:
        MHEError: it is not there.
    """
    for folder in data.split(os.pathsep):
        if not folder or not Path(folder).is_dir():
            raise MHEError(
                f"there is no data directory {folder or repr(folder)}; fairseq-preprocess writes one"
            )


class Subset:
    """A split of the data, as a task of fairseq reads it.

    Args:
        task: fairseq's.
        data: its folder; several with ':', of which fairseq reads the first for all but training.
        name: of the split, "valid".

    Raises:
        MHEError: no such split, an empty or damaged one, or one of another dictionary.
    """

    def __init__(self, task: Any, data: str, name: str) -> None:
        self.task, self.name = task, name
        self._data, self._folder = data, Path(data.split(os.pathsep)[0])
        cfg = task.cfg or task.args
        #: Of a model of many languages, in the order of its data.
        self.pairs: list[str] = list(task.lang_pairs) if hasattr(task, "lang_pairs") else []
        self._langs = (cfg.source_lang, cfg.target_lang) if translates(cfg._name) else None
        self._texts = self._folders(cfg)
        sides_of: list[Any] = [pair.split("-") for pair in self.pairs]
        for langs in sides_of or [self._langs]:
            sides = [task.source_dictionary, task.target_dictionary] if langs else None
            for number, prefix in enumerate(self._prefixes(langs)):
                self._check(prefix, sides[number] if sides else task.source_dictionary)
        try:
            task.load_dataset(name)
        except Exception as error:  # whatever else fairseq's data sets find
            raise MHEError(f"fairseq cannot read the split {name} of {data} ({error})") from error
        self.dataset = task.dataset(name)
        # fairseq validates in the first epoch, always: which tokens are masked depends on it.
        self.dataset.set_epoch(1)
        if not len(self.dataset):
            raise self._empty()

    def __len__(self) -> int:
        """Number of sentences, or blocks of text."""
        return len(self.dataset)

    def training_counts(self) -> Tensor:
        """How often every target token occurs in the training text. Shape: (V,) long.

        Raises:
            MHEError: there is no training text, or it is of another dictionary.
        """
        langs: list[str | None] = [self._langs and self._langs[1]]
        if self.pairs:
            langs = list(dict.fromkeys(pair.split("-")[1] for pair in self.pairs))
        return torch.stack([self._counts_of(lang) for lang in langs]).sum(dim=0)

    def tokens_of_pairs(self) -> dict[str, Tensor]:
        """Pair -> (V,) bool, the tokens that its target language's training text has."""
        known = {lang: self._counts_of(lang) > 0 for lang in {pair.split("-")[1] for pair in self.pairs}}
        return {pair: known[pair.split("-")[1]] for pair in self.pairs}

    def pair_of(self, batch: Any) -> str:
        """The pair of a batch, for a model of many languages."""
        return self.pairs[int(self._place_of(batch[0]))]

    def _place_of(self, indices: Any) -> Any:
        """Which of ``pairs`` sentences are of."""
        sizes = getattr(self.dataset, "cumulative_sizes", None)
        # Of a set that is drawn from all pairs; fairseq has two names for it.
        sizes = self.dataset.cumulated_sizes if sizes is None else sizes
        return np.searchsorted(sizes, indices, side="right")

    def _counts_of(self, lang: str | None) -> Tensor:
        prefixes = DataDirectory(self._data, lang).text_prefixes()
        # fairseq writes an empty file of an empty text, and cannot map it.
        prefixes = [prefix for prefix in prefixes if Path(f"{prefix}.bin").stat().st_size]
        target = self.task.target_dictionary
        # The targets of a language model may be fewer than its inputs: the others are <unk>.
        size = len(target if lang else self.task.source_dictionary)
        counts = torch.from_numpy(count_tokens(BinarisedText(prefixes), size))
        counts[target.unk()] += counts[len(target) :].sum()
        return counts[: len(target)].clone()

    def indices(self, max_positions: Any, drawn: bool) -> np.ndarray[Any, Any]:
        """Of the sentences that are not too long, by length (less padding), or ``drawn`` in random order: the
        first of these are a sample of the text, the shortest are not."""
        from fairseq.data import data_utils

        with data_utils.numpy_seed(_SEED):
            order = self.dataset.ordered_indices()
            kept = self.task.filter_indices_by_size(order, self.dataset, max_positions, True)
            indices: np.ndarray[Any, Any] = np.random.permutation(kept) if drawn else np.asarray(kept)
        if not len(indices):
            raise MHEError(
                f"no sentence of the split {self.name} fits the model, which takes at most {max_positions} "
                "tokens; give text of shorter sentences"
            )
        return indices

    def batches(self, indices: np.ndarray[Any, Any], max_tokens: int) -> list[Any]:
        """Indices of each batch; of many languages, each of one pair.

        Raises:
            MHEError: a sentence longer than a batch.
        """
        try:
            if not self.pairs:
                return list(self.dataset.batch_by_size(indices, max_tokens=max_tokens))
            of = self._place_of(indices)
            apart = [indices[of == number] for number in range(len(self.pairs))]
            found = [
                batch
                for mine in apart
                if len(mine)
                for batch in self.dataset.batch_by_size(mine, max_tokens=max_tokens)
            ]
            # Those of a pair stand together; a sample has some of all.
            order = np.random.RandomState(_SEED).permutation(len(found))
            return [found[place] for place in order]
        except AssertionError as error:
            longest = max(int(self.dataset.num_tokens(index)) for index in indices)
            raise MHEError(
                f"--max-tokens {max_tokens} is less than the longest sentence of {self.name}, {longest} "
                f"tokens; give at least {longest}"
            ) from error

    def samples(self, batches: list[Any]) -> Iterator[dict[str, Any]]:
        """Batches as models take them."""
        for batch in batches:
            yield self.dataset.collater([self.dataset[int(index)] for index in batch])

    def _prefixes(self, langs: Any) -> list[str]:
        """Paths without .bin and .idx of the source and the target, or of the only text."""
        names = [[os.path.join(text, self.name) for text in self._texts]]
        if langs:
            source, target = langs
            names = [
                [f"{self.name}.{pair}.{side}" for side in (source, target)]
                for pair in (f"{source}-{target}", f"{target}-{source}")
            ]
        for texts in names:
            if all((self._folder / f"{text}.idx").is_file() for text in texts):
                return [str(self._folder / text) for text in texts]
        there = sorted({path.name.split(".")[0] for path in self._folder.glob("*.idx")}) or ["none"]
        raise MHEError(
            f"the data {self._folder} has no split {self.name!r}: expected "
            f"{' and '.join(f'{text}.idx' for text in names[0])} (splits there: {', '.join(there)}); name "
            "one with --subset"
        )

    def _folders(self, cfg: Any) -> list[str]:
        """Where texts are, in the data's folder; a multilingual denoising has one of each language."""
        if cfg._name != "multilingual_denoising":
            return [""]
        if cfg.langs is not None:
            return list(cfg.langs.split(","))
        return sorted(path.name for path in self._folder.iterdir() if path.is_dir())

    def _check(self, prefix: str, dictionary: Any) -> None:
        binary = Path(f"{prefix}.bin")
        if binary.is_file() and not binary.stat().st_size:
            raise self._empty()
        count_tokens(BinarisedText([prefix]), len(dictionary))

    def _empty(self) -> MHEError:
        return MHEError(
            f"the split {self.name} of {self._data} is empty; name another one with --subset, such as valid "
            "or test"
        )
