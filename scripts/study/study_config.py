"""What a study trains and compares, read from a TOML file such as ``examples/translation/study.toml``."""

from __future__ import annotations

import shlex
import tomllib
from dataclasses import dataclass
from pathlib import Path
from string import Formatter
from typing import Any


class StudyError(Exception):
    """Bad input, or a step that failed, said in one sentence."""


@dataclass(frozen=True)
class Variant:
    """One row of the report.

    Attributes:
        name: of the row.
        train: flags of fairseq-train beside those of all variants.
        assign: flags of `mhe assign`; empty: the head has no learned codebook.
        about: a remark for the report.
    """

    name: str
    train: str
    assign: str
    about: str

    def __post_init__(self) -> None:
        if bool(self.assign) != ("{codes}" in self.train):
            raise StudyError(
                f"variant {self.name}: `assign` and {{codes}} in `train` go together, got only one"
            )


@dataclass(frozen=True)
class Study:
    """The whole file.

    Attributes:
        baseline: the variant that others are compared with.
        languages: source, target.
        vocab_size: joint pieces.
        updates: of every training.
        seeds: one training each.
        every: updates between validations.
        train: flags of fairseq-train for all variants.
        generate: flags of fairseq-generate.
        variants: by name, the baseline first.
    """

    baseline: str
    languages: tuple[str, str]
    vocab_size: int
    updates: int
    seeds: tuple[int, ...]
    every: int
    train: str
    generate: str
    variants: dict[str, Variant]

    @property
    def data(self) -> str:
        """What a record says of them."""
        return f"{' to '.join(self.languages)}; {self.vocab_size:,} pieces of sentencepiece, joined"

    def chosen(self, only: str | None, flag: str = "--only") -> list[Variant]:
        """Those named in a flag, separated by commas; all without it.

        Raises:
            StudyError: an unknown one, or one twice.
        """
        names = list(self.variants) if only is None else only.split(",")
        if set(names) - set(self.variants) or len(set(names)) < len(names):
            raise StudyError(f"{flag} takes different ones of {', '.join(self.variants)}; got {only}")
        return [self.variants[name] for name in names]


#: Top-level keys with the type each must have.
_KEYS: dict[str, type] = {
    "baseline": str,
    "languages": list,
    "vocab_size": int,
    "updates": int,
    "seeds": list,
    "every": int,
    "train": str,
    "generate": str,
    "variants": dict,
}


def read_study(path: Path) -> Study:
    """Read and check a study.

    Raises:
        StudyError: no such file, not TOML, or a key that is missing, unknown or of a wrong kind.
    """
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise StudyError(f"there is no study {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is not TOML: {error}") from None
    flags = found.pop("flags", {})
    if set(found) != set(_KEYS):
        missing, unknown = sorted(set(_KEYS) - set(found)), sorted(set(found) - set(_KEYS))
        raise StudyError(
            f"{path} must have the keys {', '.join(_KEYS)}; "
            f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}"
        )
    for key, kind in _KEYS.items():
        if type(found[key]) is not kind:
            raise StudyError(f"{path}: {key} must be of type {kind.__name__}, got {found[key]!r}")
    for key in ("vocab_size", "updates", "every"):
        if found[key] < 1:
            raise StudyError(f"{path}: {key} must be at least 1, got {found[key]}")
    variants = {name: _variant(path, name, each, flags) for name, each in found["variants"].items()}
    if found["baseline"] not in variants:
        raise StudyError(f"{path}: the baseline {found['baseline']} is none of {', '.join(variants)}")
    first = {found["baseline"]: variants[found["baseline"]]}
    return Study(
        baseline=found["baseline"],
        languages=_pair(path, found["languages"]),
        vocab_size=found["vocab_size"],
        updates=found["updates"],
        seeds=_seeds(path, found["seeds"]),
        every=found["every"],
        train=_words(found["train"]),
        generate=_words(found["generate"]),
        variants=first | variants,
    )


def _variant(path: Path, name: str, values: dict[str, Any], flags: dict[str, str]) -> Variant:
    unknown = set(values) - {"train", "assign", "about"}
    if unknown or "train" not in values:
        raise StudyError(
            f"{path}: variant {name} must have `train`, and may have `assign` and `about`; "
            f"got {', '.join(values)}"
        )
    # {codes} is filled in later, when it is known where the codebook lies.
    given = flags | {"codes": "{codes}"}
    strange = {field for _, field, _, _ in Formatter().parse(values["train"]) if field} - set(given)
    if strange:
        raise StudyError(
            f"{path}: variant {name} uses {{{', '.join(sorted(strange))}}}; "
            f"there are {', '.join(sorted(given))}"
        )
    train = _words(values["train"].format(**given))
    return Variant(name, train, _words(values.get("assign", "")), values.get("about", ""))


def _pair(path: Path, languages: list[Any]) -> tuple[str, str]:
    if len(languages) != 2 or not all(isinstance(each, str) for each in languages):
        raise StudyError(f'{path}: languages must be two, such as ["en", "de"]; got {languages}')
    return languages[0], languages[1]


def _seeds(path: Path, seeds: list[Any]) -> tuple[int, ...]:
    if not seeds or not all(type(each) is int for each in seeds) or len(set(seeds)) < len(seeds):
        raise StudyError(f"{path}: seeds must be different whole numbers; got {seeds}")
    return tuple(seeds)


def _words(text: str) -> str:
    """The same on one line, as typed."""
    return shlex.join(shlex.split(text))
