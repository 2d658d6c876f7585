"""``--mhe-allowed``: which tokens a search may choose, from a file or from a language's training text."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import Allowed
from mhe_fairseq.tasks.binarised import BinarisedText

if TYPE_CHECKING:
    from fairseq.data import Dictionary

HELP = (
    "search only tokens of the target language: 'lang' for those that occur in its training text, or a file "
    "of tokens, one a line (a dictionary's lines do, too)"
)

#: The value that means the training text.
OF_TEXT = "lang"

logger = logging.getLogger(__name__)


def read_allowed(
    value: str, dictionary: Dictionary, lang: str | None, data: str, train: str = "train",
    sources: Sequence[str] | None = None,
) -> Allowed:  # fmt: skip
    """The tokens of ``--mhe-allowed``, and the end of the sentence, which always is one. Padding never is.

    Args:
        value: "lang" or the path of a file.
        dictionary: of the targets.
        lang: the target language.
        data: folders of binarised data, with ':'.
        train: name of the training split.
        sources: languages of the other sides of pairs with this target; None: all that the data has.

    Raises:
        MHEError: no such file, a file without a token of the dictionary, or a language without text.
    """
    if value == OF_TEXT:
        mask, name = _of_text(dictionary, lang, data, train, sources), f"those of the training text in {lang}"
    else:
        mask, name = _of_file(dictionary, Path(value)), f"those in {value}"
    mask[dictionary.pad()] = False
    mask[dictionary.eos()] = True
    return Allowed(mask, name)


def _of_file(dictionary: Dictionary, path: Path) -> torch.Tensor:
    if not path.is_file():
        raise MHEError(
            f"there is no file {path} for --mhe-allowed; it needs a token a line, and 'lang' means the "
            "training text of the target language"
        )
    mask, strange = torch.zeros(len(dictionary), dtype=torch.bool), []
    # Lines end with \n only: tokens may hold other characters that Python takes for line ends.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for line in lines:
            symbol = line.rstrip("\r\n")
            if symbol not in dictionary:
                symbol = re.sub(r" \d+( #fairseq:overwrite)?$", "", symbol)
            if symbol in dictionary:
                mask[dictionary.index(symbol)] = True
            elif symbol:
                strange.append(symbol)
    if not bool(mask.any()):
        told = f"{len(strange)} lines" + (f", such as {strange[0]!r}" if strange else "")
        raise MHEError(
            f"the file {path} of --mhe-allowed has no token of the dictionary ({told}); give "
            "tokens as the dictionary writes them, one a line"
        )
    if strange:
        logger.info(
            "mhe: %d of %d tokens in %s are not in the dictionary, such as %r",
            len(strange), int(mask.sum()) + len(strange), path, strange[0],
        )  # fmt: skip
    return mask


def _of_text(
    dictionary: Dictionary, lang: str | None, data: str, train: str, sources: Sequence[str] | None
) -> torch.Tensor:
    prefixes = [path for folder in data.split(os.pathsep) for path in _texts(folder, lang, train, sources)]
    # fairseq writes an empty file of an empty text, and cannot map it.
    prefixes = [path for path in prefixes if Path(f"{path}.bin").stat().st_size]
    if not prefixes:
        raise MHEError(
            f"--mhe-allowed lang: the language {lang} has no training text in {data} (expected "
            f"{train}.*-{lang}.{lang}.idx with its .bin); give the data of the training, or a file of its "
            "tokens, one a line"
        )
    found = np.zeros(len(dictionary), dtype=bool)
    for chunk in BinarisedText(prefixes):
        if len(chunk) and not 0 <= chunk.min() <= chunk.max() < len(found):
            raise MHEError(
                f"the training text {prefixes[0]} has token {int(chunk.max())}, the dictionary has "
                f"0..{len(found) - 1} only; they do not belong together"
            )
        found[chunk] = True
    return torch.from_numpy(found)


def _texts(folder: str, lang: str | None, train: str, sources: Sequence[str] | None) -> list[str]:
    """Paths without .bin and .idx of the language's side of its pairs, binarised either way round."""
    side, begin = re.escape(str(lang)), re.escape(train)
    found = []
    for path in sorted(Path(folder).glob(f"{train}*.{lang}.idx")):
        match = re.fullmatch(rf"{begin}\d*\.(?:([^.-]+)-{side}|{side}-([^.-]+))\.{side}\.idx", path.name)
        if match and path.with_suffix(".bin").is_file():
            if sources is None or (match[1] or match[2]) in sources:
                found.append(str(path.with_suffix("")))
    return found


def allowed_of(task: Any) -> Allowed | None:
    """What a task's options ask for; None: all tokens. Read once for each language."""
    options = task.args if task.cfg is None else task.cfg
    value = getattr(options, "mhe_allowed", None)
    if not value:
        return None
    lang = options.target_lang
    kept: dict[tuple[str, str | None], Allowed] = task.__dict__.setdefault("_mhe_allowed", {})
    if (value, lang) not in kept:
        pairs = getattr(options, "lang_pairs", None)
        sources = None if pairs is None else [p.split("-")[0] for p in pairs if p.split("-")[1] == lang]
        train = getattr(options, "train_subset", None) or "train"
        kept[value, lang] = read_allowed(
            value, task.target_dictionary, lang, options.data, train, sources or None
        )
    return kept[value, lang]
