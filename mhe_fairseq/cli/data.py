"""Where a directory that fairseq-preprocess wrote has a dictionary and the training text of a side."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from fairseq.data import Dictionary


class DataDirectory:
    """What fairseq-preprocess left: where the dictionary and the training text of one side are.

    Args:
        data: the directory, or several separated by ':' as fairseq takes them.
        lang: the side wanted; None: the target of the only language pair, or the only text there is.

    Raises:
        MHEError: no directory, no dictionary, or more than one side that could be meant.
    """

    def __init__(self, data: str, lang: str | None) -> None:
        self.folders = [Path(part) for part in data.split(os.pathsep) if part]
        if not self.folders:
            raise MHEError("--data is empty; it must be a directory written by fairseq-preprocess")
        for folder in self.folders:
            if not folder.is_dir():
                raise MHEError(f"there is no data directory {folder}; fairseq-preprocess writes one")
        self.lang = self._only_target() if lang is None else lang
        name = "dict.txt" if self.lang is None else f"dict.{self.lang}.txt"
        self.dictionary = self.folders[0] / name
        if not self.dictionary.is_file():
            found = sorted(path.name for path in self.folders[0].glob("dict*.txt")) or ["none"]
            raise MHEError(
                f"{self.folders[0]} has no {name}, the dictionary of the target side "
                f"(dictionaries there: {', '.join(found)}); "
                "give a directory written by fairseq-preprocess, and its language with --target-lang"
            )

    def text_prefixes(self) -> list[str]:
        """Paths without .bin and .idx of the training text, all shards.

        Raises:
            MHEError: there is none.
        """
        names = sorted(name for folder in self.folders for name in self._texts(folder))
        if self.lang is None:
            wanted = [n for n in names if re.fullmatch(r"train\d*", Path(n).name)]
            expected = "train.idx"
        else:
            side = re.escape(self.lang)
            as_target = rf"train\d*\.[^.]+-{side}\.{side}"
            as_source = rf"train\d*\.{side}-[^.]+\.{side}"
            wanted = [n for n in names if re.fullmatch(as_target, Path(n).name)]
            # A pair binarised the other way round has the text just the same.
            wanted = wanted or [n for n in names if re.fullmatch(as_source, Path(n).name)]
            expected = f"train.*-{self.lang}.{self.lang}.idx"
        if not wanted:
            found = ", ".join(sorted({Path(n).name for n in names})) or "none"
            raise MHEError(
                f"{os.pathsep.join(map(str, self.folders))} has no binarised target side: "
                f"expected {expected} with its .bin (training texts there: {found})"
            )
        return wanted

    def joined_prefixes(self) -> list[str]:
        """As ``text_prefixes``, of the other sides of pairs that have the same dictionary (fairseq-preprocess
        --joined-dictionary)."""
        if self.lang is None:
            return []
        side, own = re.escape(self.lang), self.dictionary.read_bytes()
        found = []
        for folder in self.folders:
            for name in self._texts(folder):
                match = re.fullmatch(
                    rf"train\d*\.(?:([^.-]+)-{side}|{side}-([^.-]+))\.([^.]+)", Path(name).name
                )
                other = match and (match[1] or match[2])
                if not match or match[3] != other:
                    continue
                theirs = self.folders[0] / f"dict.{other}.txt"
                if theirs.is_file() and theirs.read_bytes() == own:
                    found.append(name)
        return sorted(found)

    def _only_target(self) -> str | None:
        pairs = set()
        for folder in self.folders:
            for name in self._texts(folder):
                if match := re.fullmatch(r"train\d*\.([^.-]+)-([^.-]+)\.[^.]+", Path(name).name):
                    pairs.add((match[1], match[2]))
        # `fairseq-preprocess --only-source -s en` calls the other side None.
        targets = {source if target == "None" else target for source, target in pairs}
        if len(targets) > 1:
            shown = ", ".join("-".join(pair) for pair in sorted(pairs))
            raise MHEError(
                f"{self.folders[0]} has several pairs ({shown}); say which side with --target-lang"
            )
        return targets.pop() if targets else None

    @staticmethod
    def _texts(folder: Path) -> list[str]:
        # Texts of several languages may lie in a folder each, as multilingual_denoising has them.
        found = list(folder.glob("train*.idx")) or list(folder.glob("*/train.idx"))
        return [str(path.with_suffix("")) for path in found]


def read_dictionary(path: Path, extra: list[str] | None = None) -> Dictionary:
    """A fairseq dictionary, as a task has it after loading: special symbols first, ``extra`` ones last.

    Raises:
        MHEError: missing, malformed, without symbols, or an extra symbol that is there already.
    """
    from fairseq.data import Dictionary

    if not path.is_file():
        raise MHEError(
            f"there is no dictionary {path}; fairseq-preprocess writes dict.LANG.txt (or dict.txt)"
        )
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # ValueError, RuntimeError, and a bare Exception for a wrong encoding
        reason = str(error).strip().split("\n")[0]
        raise MHEError(
            f"dictionary {path} cannot be read, every line must be `symbol count`: {reason}"
        ) from error
    if len(dictionary) == dictionary.nspecial:
        raise MHEError(f"dictionary {path} has no symbols, every line must be `symbol count`")
    for symbol in extra or []:
        if symbol in dictionary:
            raise MHEError(f"--add-symbol {symbol}: the dictionary {path} has this symbol already")
        dictionary.add_symbol(symbol)
    return dictionary
