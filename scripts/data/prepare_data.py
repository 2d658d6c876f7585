#!/usr/bin/env python3
"""Check parallel text, train a joint sentencepiece model on it, and split it into pieces.

    python scripts/data/prepare_data.py --source DIR --out DIR --src en --tgt de --vocab-size 6000

reads ``DIR/{train,valid,test}.{en,de}`` (plain or ``.xz``) and writes ``text/``, ``spm.model`` and
``pieces/`` under ``--out``.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import sentencepiece

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import (  # noqa: E402
    SPLITS,
    PrepareError,
    keep_settings,
    read_lines,
    run_script,
    step,
    train_pieces,
)
from scripts.data.arguments import add_pair, preparing  # noqa: E402


def find_source(folder: Path, split: str, lang: str) -> Path:
    """``split.lang`` or ``split.lang.xz`` in ``folder``."""
    for name in (f"{split}.{lang}", f"{split}.{lang}.xz"):
        if (folder / name).is_file():
            return folder / name
    raise PrepareError(f"there is no {split}.{lang} or {split}.{lang}.xz in {folder}")


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


def plain(path: Path) -> Iterator[bytes]:
    return (line.encode() + b"\n" for line in read_lines(path))


def encoded(path: Path, pieces: sentencepiece.SentencePieceProcessor) -> Iterator[bytes]:
    return (" ".join(pieces.encode(line, out_type=str)).encode() + b"\n" for line in read_lines(path))


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
    keep_settings(out / "prepared.json", settings)

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
    parser = preparing(__doc__)
    add_pair(parser, "en", "de")
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=6000,
        help="pieces of both languages together (default: %(default)s)",
    )
    args = parser.parse_args(argv)
    return run_script(
        "prepare_data.py",
        args.out,
        lambda: prepare(args.source, args.out, args.src, args.tgt, args.vocab_size),
    )


if __name__ == "__main__":
    sys.exit(main())
