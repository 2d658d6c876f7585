"""Binarised data of many language pairs with one dictionary, as fairseq's many-to-many task reads it."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from fairseq.data import Dictionary


class PairsDirectory:
    """Where the dictionary and the training texts of all pairs are.

    Args:
        data: the directory, or several separated by ':' as fairseq takes them.
        pairs: "aa-bb", ...
        langs: languages in the order of their tokens.
        fixed: dictionary in place of those of the data.
        style: of language tokens, "multilingual" or "mbart".
        specs: kinds of language tokens, "main", ...

    Raises:
        MHEError: no directory or dictionary, dictionaries that differ, a language that is not listed, a pair
            without training text.
    """

    def __init__(
        self,
        data: str,
        pairs: list[str],
        langs: list[str],
        fixed: str | None = None,
        style: str = "multilingual",
        specs: tuple[str, ...] = ("main",),
    ) -> None:
        from mhe_fairseq.tasks.languages import (
            check_files,
            check_known,
            check_pairs_have_data,
            check_same,
        )

        self.pairs, self.langs = pairs, langs
        self._style, self._specs = style, specs
        self.folders = [Path(part) for part in data.split(os.pathsep) if part]
        if not self.folders:
            raise MHEError("--data is empty; it must be a directory written by fairseq-preprocess")
        for folder in self.folders:
            if not folder.is_dir():
                raise MHEError(f"there is no data directory {folder}; fairseq-preprocess writes one")
        check_known(pairs, langs)
        needed = sorted({lang for pair in pairs for lang in pair.split("-")})
        targets = sorted({pair.split("-")[1] for pair in pairs})
        if fixed is None:
            check_files(data, needed)
            paths = {lang: self.folders[0] / f"dict.{lang}.txt" for lang in targets}
            check_same({lang: read_dictionary(path) for lang, path in paths.items()}, "target")
        self._dictionary = Path(fixed) if fixed is not None else paths[targets[0]]
        found = [f"main:{pair}" for pair in pairs if self._names(pair)]
        check_pairs_have_data("train", data, [f"main:{pair}" for pair in pairs], found)

    @classmethod
    def of(cls, args: argparse.Namespace) -> PairsDirectory:
        """From the flags of ``add_language_args`` and ``--data``."""
        from mhe_fairseq.tasks.languages import read_languages, read_pairs

        pairs = read_pairs(args.lang_pairs)
        langs = read_languages(args.langs and args.langs.split(","), args.lang_dict, pairs)
        specs = tuple(args.langtoks_specs.split(","))
        return cls(args.data, pairs, langs, args.fixed_dictionary, args.lang_tok_style, specs)

    def dictionary(self, extra: list[str]) -> Dictionary:
        """As the task has it after loading: the data's symbols, a token for each language and, in the style
        of mBART, ``<mask>``; then ``extra`` ones.

        Raises:
            MHEError: an extra symbol that is there already.
        """
        found = read_dictionary(self._dictionary)
        add_languages(found, self.langs, self._style, self._specs)
        for symbol in extra:
            if symbol in found:
                raise MHEError(
                    f"--add-symbol {symbol}: the dictionary {self._dictionary} has this symbol already, or "
                    "the task adds it as a language's token"
                )
            found.add_symbol(symbol)
        return found

    def prefixes(self, pair: str, target: bool) -> list[str]:
        """Paths without .bin and .idx of one side of a pair's training text, all shards."""
        source, _, lang = pair.partition("-")
        return [f"{name}.{lang if target else source}" for name in self._names(pair)]

    def _names(self, pair: str) -> list[str]:
        """Paths of training texts without the language, of the pair or else of the reverse one."""
        source, _, target = pair.partition("-")
        names = sorted(
            str(path.with_suffix("").with_suffix(""))
            for folder in self.folders
            for path in folder.glob("train*.idx")
        )
        for way in (pair, f"{target}-{source}"):
            wanted = rf"train\d*\.{re.escape(way)}"
            found = sorted({name for name in names if re.fullmatch(wanted, Path(name).name)})
            found = [n for n in found if all(Path(f"{n}.{side}.idx").is_file() for side in (source, target))]
            if found:
                return found
        return []


def add_languages(
    dictionary: Dictionary, langs: list[str], style: str = "multilingual", specs: tuple[str, ...] = ("main",)
) -> None:
    """Add the symbols that the task adds after loading.

    Args:
        dictionary: changed.
        langs: in the order of their tokens.
        style: "multilingual", ``__en__``; or "mbart", ``[en]`` and ``<mask>``.
        specs: kinds of tokens, each has all languages.
    """
    from fairseq.data.multilingual.multilingual_utils import augment_dictionary

    augment_dictionary(dictionary, langs, style, specs)
