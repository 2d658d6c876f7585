#!/usr/bin/env python3
"""Parallel text -> checked plain text, a joint sentencepiece model, and text in pieces.

    python scripts/prepare_data.py --source DIR --out DIR --src en --tgt de --vocab-size 6000

reads ``DIR/{train,valid,test}.{en,de}`` (plain or ``.xz``) and writes ``text/``, ``spm.model`` and
``pieces/`` under ``--out``. Everything is checked before anything is written; every file is written under
another name and renamed when whole; what is there already is kept. So it may be stopped at any time and run
again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import lzma
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import sentencepiece

SPLITS = ("train", "valid", "test")


class PrepareError(Exception):
    """Bad input, said in one sentence."""


def find_source(folder: Path, split: str, lang: str) -> Path:
    """``split.lang`` or ``split.lang.xz`` in ``folder``."""
    for name in (f"{split}.{lang}", f"{split}.{lang}.xz"):
        if (folder / name).is_file():
            return folder / name
    raise PrepareError(f"there is no {split}.{lang} or {split}.{lang}.xz in {folder}")


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a file, refused when it is no UTF-8 or has a line without text.

    Only a line feed ends a line: Python's other line ends (such as U+2028) occur inside sentences and would
    shift one side against the other. A carriage return becomes a space, because the commands after this one
    would break the line there.
    """
    number = 0
    try:
        with lzma.open(path) if path.suffix == ".xz" else open(path, "rb") as file:
            for raw in file:
                line = raw.decode("utf-8").replace("\r", " ").strip()
                number += 1
                if not line:
                    raise PrepareError(f"line {number} of {path} is empty; every line needs a sentence")
                yield line
    except UnicodeDecodeError as error:
        raise PrepareError(
            f"line {number + 1} of {path} is not UTF-8 ({error.reason}); convert it first, as iconv does"
        ) from None
    except (lzma.LZMAError, EOFError) as error:
        raise PrepareError(f"{path} is damaged or no xz file ({error}); copy it again") from None
    if number == 0:
        raise PrepareError(f"{path} is empty; at least one sentence was expected")


def check(folder: Path, src: str, tgt: str) -> dict[str, str]:
    """Read everything once. Returns "train.en" -> a fingerprint of its lines.

    Raises:
        PrepareError: a file is missing, empty, damaged or not UTF-8, or the sides differ in length.
    """
    fingerprints = {}
    for split in SPLITS:
        counts = {}
        for lang in (src, tgt):
            digest = hashlib.sha256()
            count = 0
            path = find_source(folder, split, lang)
            for line in read_lines(path):
                digest.update(line.encode() + b"\n")
                count += 1
            counts[path] = count
            fingerprints[f"{split}.{lang}"] = digest.hexdigest()
        (left, left_count), (right, right_count) = counts.items()
        if left_count != right_count:
            raise PrepareError(
                f"{left} has {left_count} lines and {right} has {right_count}; "
                "they must have the same number, line n of one being the translation of line n of the other"
            )
    return fingerprints


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader, at any time, sees none or the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
    os.replace(temporary, path)


def step(path: Path, chunks: Callable[[], Iterable[bytes]]) -> None:
    """Make ``path`` of what ``chunks`` returns, unless it is there."""
    if path.is_file():
        print(f"{path}: there already")
        return
    write_whole(path, chunks())
    print(f"{path}: written")


def plain(path: Path) -> Iterator[bytes]:
    return (line.encode() + b"\n" for line in read_lines(path))


def encoded(path: Path, pieces: sentencepiece.SentencePieceProcessor) -> Iterator[bytes]:
    return (" ".join(pieces.encode(line, out_type=str)).encode() + b"\n" for line in read_lines(path))


def train_pieces(text: list[Path], vocab_size: int) -> bytes:
    """A joint byte-pair model of all of ``text``, the same bytes on every run.

    Byte pairs rather than sentencepiece's default, a unigram model: on a corpus of some thousand lines the
    latter splits the commonest words (``fü r``) and needs 7% more pieces for the bundled test set.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=(line for path in text for line in read_lines(path)),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=1.0,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        # The library's message begins with the line of its source that raised it.
        reason = str(error).strip().splitlines()[-1].split("] ")[-1].strip()
        raise PrepareError(f"sentencepiece made no model of {vocab_size} pieces: {reason}") from None
    return model.getvalue()


def same_settings(path: Path, settings: dict[str, object]) -> bool:
    """Whether ``path`` records these settings (False: records nothing).

    Raises:
        PrepareError: it records others. Going on would mix two preparations.
    """
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise PrepareError(f"{path} is damaged; remove {path.parent} to prepare again") from None
    changed = sorted(key for key in settings if found.get(key) != settings[key])
    if changed:
        raise PrepareError(
            f"{path.parent} was prepared with other {', '.join(changed)}; "
            "give another --out, or remove it to prepare again"
        )
    return True


def prepare(source: Path, out: Path, src: str, tgt: str, vocab_size: int) -> None:
    """Check, unpack, train the pieces, encode."""
    if src == tgt:
        raise PrepareError(f"--src and --tgt are both {src}; two languages were expected")
    if vocab_size < 8:
        raise PrepareError(f"--vocab-size must be at least 8, got {vocab_size}")
    if not source.is_dir():
        raise PrepareError(f"--source {source} is not a folder")
    fingerprints = check(source, src, tgt)
    settings: dict[str, object] = {"languages": [src, tgt], "vocab_size": vocab_size, "text": fingerprints}
    record = out / "prepared.json"
    if not same_settings(record, settings):
        write_whole(record, [json.dumps(settings, indent=1).encode() + b"\n"])

    names = [f"{split}.{lang}" for split in SPLITS for lang in (src, tgt)]
    for name in names:
        path = find_source(source, *name.split(".", 1))
        step(out / "text" / name, partial(plain, path))

    train_text = [out / "text" / f"train.{lang}" for lang in (src, tgt)]
    step(out / "spm.model", lambda: [train_pieces(train_text, vocab_size)])

    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    for name in names:
        step(out / "pieces" / name, partial(encoded, out / "text" / name, pieces))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--src", default="en", help="source language (default: %(default)s)")
    parser.add_argument("--tgt", default="de", help="target language (default: %(default)s)")
    parser.add_argument("--vocab-size", type=int, default=6000, help="pieces, joint (default: %(default)s)")
    args = parser.parse_args(argv)
    new = not args.out.exists()
    try:
        prepare(args.source, args.out, args.src, args.tgt, args.vocab_size)
    except (PrepareError, OSError) as error:
        # A folder that this run began is of no use without its end; one that was there is not ours to remove.
        if new:
            shutil.rmtree(args.out, ignore_errors=True)
        print(f"prepare_data.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
