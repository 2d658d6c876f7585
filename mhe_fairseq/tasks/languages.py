"""Languages and pairs of a many-to-many translation: what was given, and whether it is there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mhe_fairseq.errors import MHEError


def read_pairs(value: str | Sequence[str] | None) -> list[str]:
    """``--lang-pairs`` as a list of "aa-bb".

    Args:
        value: as given, with ','; or a list from a checkpoint.

    Raises:
        MHEError: none, or a pair that is not two languages.
    """
    pairs = value.split(",") if isinstance(value, str) else list(value or [])
    pairs = [pair.strip() for pair in pairs if pair.strip()]
    if not pairs:
        raise MHEError("--lang-pairs is missing; it lists the pairs that are trained, such as en-de,de-en")
    for pair in pairs:
        if pair.count("-") != 1 or not all(pair.split("-")):
            raise MHEError(
                f"--lang-pairs {','.join(pairs)}: {pair!r} is not a source and a target with one '-' between "
                "them, such as en-de"
            )
    return pairs


def read_languages(langs: Sequence[str] | None, lang_dict: str | None, pairs: Sequence[str]) -> list[str]:
    """The languages in the order of their tokens, as fairseq's task has them.

    Args:
        langs: of ``--langs``.
        lang_dict: file of ``--lang-dict``, a language a line.
        pairs: from which languages are taken, sorted, where neither is given.

    Raises:
        MHEError: both are given, or a file that is not there or has no language.
    """
    if langs and lang_dict:
        raise MHEError(
            f"--langs {','.join(langs)} and --lang-dict {lang_dict} both list the languages; give one of them"
        )
    if not lang_dict:
        return list(langs) if langs else sorted({lang for pair in pairs for lang in pair.split("-")})
    if not Path(lang_dict).is_file():
        raise MHEError(f"there is no file {lang_dict} for --lang-dict; it needs one language a line")
    found = [line.strip() for line in Path(lang_dict).read_text("utf-8").splitlines() if line.strip()]
    if not found:
        raise MHEError(f"the file {lang_dict} of --lang-dict has no language; it needs one a line")
    return found


def check_known(pairs: Iterable[str], langs: Sequence[str]) -> None:
    """Refuse a language that has no token.

    Raises:
        MHEError: a language of ``pairs`` that is none of ``langs``.
    """
    for pair in pairs:
        strange = [lang for lang in pair.split("-") if lang not in langs]
        if strange:
            raise MHEError(
                f"the pair {pair} has the language {strange[0]!r}, which is not one of {', '.join(langs)}; "
                "list it with --langs (or in the file of --lang-dict), as in training"
            )


def check_files(data: str, langs: Iterable[str]) -> None:
    """Refuse data without a language's dictionary.

    Args:
        data: folders, with ':'; dictionaries are in the first.
        langs: whose dictionaries are read.

    Raises:
        MHEError: no such folder, or no such dictionary in it.
    """
    folder = Path(data.split(os.pathsep)[0])
    if not folder.is_dir():
        raise MHEError(f"there is no data directory {folder}; fairseq-preprocess writes one")
    for lang in sorted(set(langs)):
        if not (folder / f"dict.{lang}.txt").is_file():
            found = sorted(path.name for path in folder.glob("dict*.txt")) or ["none"]
            raise MHEError(
                f"the data {folder} has no dict.{lang}.txt (dictionaries there: {', '.join(found)}); "
                "binarise every pair into it, with one dictionary"
            )


def check_same(dictionaries: dict[str, Any], side: str) -> None:
    """Refuse dictionaries that differ.

    Args:
        dictionaries: language -> fairseq's dictionary.
        side: "source" or "target".

    Raises:
        MHEError: two that differ.
    """
    (first, one), *others = dictionaries.items()
    for lang, other in others:
        if other == one:
            continue
        sizes = f"{len(one)} and {len(other)} symbols"
        if len(one) == len(other):
            place = next(i for i in range(len(one)) if one[i] != other[i])
            sizes += f", the first difference is symbol {place}, {one[place]!r} and {other[place]!r}"
        raise MHEError(
            f"the dictionaries of the {side} languages {first} and {lang} differ ({sizes}); all pairs need "
            "one dictionary: binarise them with --srcdict FILE --joined-dictionary"
        )


def check_pairs_have_data(split: str, data: str, wanted: Iterable[str], found: Iterable[str]) -> None:
    """Refuse a pair without text.

    Args:
        split: such as "train".
        data: folders, to be named.
        wanted: "category:aa-bb" of fairseq's data manager.
        found: those that have data.

    Raises:
        MHEError: one that has none.
    """
    found = sorted(found)
    for key in wanted:
        if key in found:
            continue
        source, _, target = key.partition(":")[2].partition("-")
        raise MHEError(
            f"the data {data} has no text of the pair {source}-{target}: neither "
            f"{split}.{source}-{target}.{source}.idx nor {split}.{target}-{source}.{source}.idx "
            f"(pairs with text: {', '.join(each.partition(':')[2] for each in found) or 'none'}); binarise "
            "it, or leave it out of --lang-pairs"
        )
