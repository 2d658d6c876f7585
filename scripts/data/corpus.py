"""A parallel corpus as a file describes it: archives to download, and the texts in them.

    source = "en"
    target = "de"

    [archives.europarl]
    url = "https://www.statmt.org/wmt13/training-parallel-europarl-v7.tgz"
    sha256 = "0224..."                  # or md5; neither where none was ever published

    [archives.newstest2014]
    sacrebleu = "wmt14/full"            # address, MD5 and files are those that sacrebleu knows

    [[train]]
    archive = "europarl"
    files = ["training/europarl-v7.de-en.en", "training/europarl-v7.de-en.de"]   # source, target
    format = "plain"                    # or "segments" (SGML, XML), "tags" (IWSLT's train.tags)

    [[test]]
    archive = "newstest2014"

A corpus of many languages, each with English, has ``[many]`` in place of archives and parts; see
examples/translation/opus100/corpus.toml.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from scripts.common.files import SPLITS, PrepareError

FORMATS = ("plain", "segments", "tags")


@dataclass(frozen=True)
class Archive:
    """A file to download.

    Attributes:
        file: its name on disk.
        url: where it is.
        sha256, md5: what it must have; None where nobody published it.
    """

    file: str
    url: str
    sha256: str | None = None
    md5: str | None = None


@dataclass(frozen=True)
class Part:
    """A parallel text in an archive.

    Attributes:
        split: "train", "valid" or "test".
        archive: name of the archive.
        files: its members, source and target.
        format: one of ``FORMATS``.
        languages: of the two files. In a corpus of many languages the text is used in both directions.
    """

    split: str
    archive: str
    files: tuple[str, str]
    format: str
    languages: tuple[str, str]


@dataclass(frozen=True)
class Corpus:
    """What a corpus.toml says.

    Attributes:
        source, target: ends of the names of the text files to make.
        archives: by name.
        parts: in order.
        many: both directions of every part, each with a tag of its target language.
    """

    source: str
    target: str
    archives: dict[str, Archive]
    parts: tuple[Part, ...]
    many: bool = False

    def tags(self) -> list[str]:
        """The tags of a corpus of many languages; none of another."""
        known = {language for part in self.parts for language in part.languages}
        return [tag(language) for language in sorted(known)] if self.many else []


def tag(language: str) -> str:
    """What stands before a source sentence to be translated into a language."""
    return f"<2{language}>"


def load(path: Path, languages: str | None = None, checksums: Path | None = None) -> Corpus:
    """Read a corpus.toml.

    Args:
        path: the file.
        languages: of a corpus of many languages, those wanted, as "de,fr"; None: all.
        checksums: a file as sha256sum writes it; an archive listed there must have that checksum, whatever
            corpus.toml says.

    Raises:
        PrepareError: it cannot be read, or describes no corpus.
    """
    try:
        with open(path, "rb") as file:
            found = tomllib.load(file)
    except FileNotFoundError:
        raise PrepareError(f"there is no file {path}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise PrepareError(f"{path} is not a TOML file: {error}") from None
    try:
        if "many" in found:
            corpus = _many(found, path, languages)
        elif languages is not None:
            raise PrepareError(f"{path} has two languages; --languages is for a corpus of many")
        else:
            corpus = _pair(found, path)
    except (KeyError, TypeError, ValueError) as error:
        raise PrepareError(f"{path} does not describe a corpus ({type(error).__name__}: {error})") from None
    for split in SPLITS if corpus.many else ("train", "test"):
        if not any(part.split == split for part in corpus.parts):
            raise PrepareError(f"{path} names no text for the {split} set")
    return replace(corpus, archives=_changed(corpus.archives, checksums)) if checksums else corpus


def _pair(found: Mapping[str, Any], path: Path) -> Corpus:
    source, target = found["source"], found["target"]
    archives, known = {}, {}
    for name, entry in found["archives"].items():
        if "sacrebleu" in entry:
            archives[name], known[name] = _sacrebleu(entry["sacrebleu"], f"{source}-{target}")
        else:
            file = entry.get("file") or Path(urlsplit(entry["url"]).path).name
            archives[name] = Archive(file, entry["url"], entry.get("sha256"), entry.get("md5"))
    parts = []
    for split in SPLITS:
        for entry in found.get(split, []):
            archive = entry["archive"]
            if archive not in archives:
                raise PrepareError(
                    f"{path} has a text in the archive '{archive}', which it does not describe"
                )
            left, right = entry.get("files") or known[archive]
            kind = entry.get("format", "segments" if archive in known else "plain")
            if kind not in FORMATS:
                raise PrepareError(f"{path} has the format '{kind}'; a format is one of {', '.join(FORMATS)}")
            parts.append(Part(split, archive, (left, right), kind, (source, target)))
    return Corpus(source, target, archives, tuple(parts))


def _sacrebleu(name: str, pair: str) -> tuple[Archive, tuple[str, str]]:
    """A test set of sacrebleu's: its archive, and its files for a pair of languages."""
    from sacrebleu.dataset import DATASETS

    if name not in DATASETS or pair not in DATASETS[name].langpairs:
        raise PrepareError(f"sacrebleu has no test set {name} for {pair}")
    dataset = DATASETS[name]
    (url,), (md5,) = dataset.data, dataset.md5
    source, target = dataset.langpairs[pair]
    # The name that it has in sacrebleu's own folder: test.tgz is several.
    file = name.replace("/", "_") + "." + Path(urlsplit(url).path).name
    return Archive(file, url, md5=md5), (source, target)


def _many(found: Mapping[str, Any], path: Path, languages: str | None) -> Corpus:
    many = found["many"]
    pivot = many["pivot"]
    known = {}
    for pair in many["sha256"]:
        (other,) = [language for language in pair.split("-") if language != pivot]
        known[other] = pair
    wanted = sorted(known) if languages is None else list(dict.fromkeys(languages.split(",")))
    unknown = [language for language in wanted if language not in known]
    if unknown:
        raise PrepareError(
            f"{path} has no language '{unknown[0]}'; --languages takes some of {','.join(sorted(known))}"
        )
    archives, parts = {}, []
    for language in wanted:
        pair = known[language]
        url = many["url"].format(pair=pair)
        archives[pair] = Archive(Path(urlsplit(url).path).name, url, many["sha256"][pair])
        for split in SPLITS:
            if split != "train" and language in many["train_only"]:
                continue
            name = many["splits"][split]
            files = [many["files"].format(pair=pair, split=name, lang=lang) for lang in (pivot, language)]
            parts.append(Part(split, pair, (files[0], files[1]), "plain", (pivot, language)))
    return Corpus(found["source"], found["target"], archives, tuple(parts), many=True)


def _changed(archives: Mapping[str, Archive], checksums: Path) -> dict[str, Archive]:
    """The archives with the checksums of a file as sha256sum writes it."""
    listed = {}
    try:
        lines: Iterable[str] = checksums.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PrepareError(f"--checksums {checksums} cannot be read ({error})") from None
    for number, line in enumerate(lines, start=1):
        entry = re.fullmatch(r"([0-9a-fA-F]{64}) [ *](.+)", line)
        if entry is None:
            raise PrepareError(
                f"line {number} of {checksums} is not a checksum and a name, as sha256sum writes them"
            )
        listed[Path(entry[2]).name] = entry[1].lower()
    return {
        name: replace(archive, sha256=listed[archive.file], md5=None) if archive.file in listed else archive
        for name, archive in archives.items()
    }
