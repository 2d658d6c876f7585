#!/usr/bin/env python3
"""Split the text of a denoising pretraining, and a pair to fine-tune on, into the same sentencepiece pieces.

    python scripts/data/prepare_denoising.py --mono MONO --langs en,de --source PAIR --src en --tgt de \\
        --pieces 32768 --out DIR

reads ``MONO/{train,valid}.LANG`` and ``PAIR/{train,valid,test}.{src,tgt}`` (plain or ``.xz``), and writes
``spm.model``, ``dict.txt``, ``mono/{train,valid}.LANG`` and ``pair/{train,valid,test}.{src,tgt}`` under
``--out``, for ``fairseq-preprocess --srcdict dict.txt``. The pieces are made of the languages' training text.
Blank lines of ``MONO`` are left out.

V of ``--pieces V`` is the size of the dictionary, including fairseq's four symbols; what a task adds to it
comes on top.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common import tokens  # noqa: E402
from scripts.common.files import (  # noqa: E402
    PrepareError,
    keep_settings,
    read_lines,
    run_script,
    step,
    train_pieces,
)
from scripts.data.arguments import add_pair, add_workers, preparing  # noqa: E402
from scripts.data.binarise import FAIRSEQ, dictionary  # noqa: E402
from scripts.data.prepare_data import check as check_pair  # noqa: E402
from scripts.data.prepare_data import find_source  # noqa: E402
from scripts.data.prepare_translation import entries  # noqa: E402

#: Of the pretraining, which is not tested.
MONO_SPLITS = ("train", "valid")


def check_mono(folder: Path, langs: list[str]) -> dict[str, str]:
    """Read every line once. Returns "train.en" -> a fingerprint of its lines.

    Raises:
        PrepareError: no language, one that is named twice, or a file that is missing, damaged or empty.
    """
    if not all(langs) or len(set(langs)) < len(langs):
        raise PrepareError(f"--langs are different languages such as en,de, got '{','.join(langs)}'")
    if not folder.is_dir():
        raise PrepareError(f"--mono {folder} is not a folder")
    fingerprints = {}
    for split in MONO_SPLITS:
        for lang in langs:
            digest = hashlib.sha256()
            for line in _text(find_source(folder, split, lang)):
                digest.update(line.encode() + b"\n")
            fingerprints[f"{split}.{lang}"] = digest.hexdigest()
    return fingerprints


def prepare(
    mono: Path, langs: list[str], pair: Path, src: str, tgt: str, size: int, out: Path, workers: int
) -> None:
    """Check, make pieces of the languages' text, split everything into them, count."""
    if workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {workers}")
    if size < 16:
        raise PrepareError(f"--pieces must be at least 16, got {size}")
    if not pair.is_dir():
        raise PrepareError(f"--source {pair} is not a folder")
    if src == tgt:
        raise PrepareError(f"--src and --tgt are both {src}; two sides were expected")
    found = {"mono": check_mono(mono, langs), "pair": check_pair(pair, src, tgt)}
    keep_settings(out / "prepared.json", {"pieces": size, "langs": langs, "src": src, "tgt": tgt, **found})
    for split in MONO_SPLITS:
        for lang in langs:
            step(out / "text" / f"{split}.{lang}", partial(_lines, find_source(mono, split, lang)))
    model, training = out / "spm.model", [out / "text" / f"train.{lang}" for lang in langs]
    # sentencepiece counts three symbols of its own, of which the dictionary takes none over.
    step(model, lambda: [train_pieces(training, size - len(FAIRSEQ) + 3, threads=workers)])
    make = partial(tokens.pieces, str(model))
    for name in found["mono"]:
        step(out / "mono" / name, partial(tokens.encoded, out / "text" / name, make, workers))
    for name in found["pair"]:
        split, _, side = name.partition(".")
        step(out / "pair" / name, partial(tokens.encoded, find_source(pair, split, side), make, workers))
    counted = [out / "mono" / f"train.{lang}" for lang in langs]
    step(out / "dict.txt", lambda: dictionary(entries(counted, model), []))


def _text(path: Path) -> Iterator[str]:
    return (line for line in read_lines(path, blank=True) if line.strip())


def _lines(path: Path) -> Iterator[bytes]:
    return (f"{line}\n".encode() for line in _text(path))


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument("--mono", type=Path, required=True, help="folder of {train,valid}.LANG[.xz]")
    parser.add_argument("--langs", required=True, metavar="L,L", help="languages of the pretraining")
    add_pair(parser)
    parser.add_argument("--pieces", type=int, required=True, metavar="V", help="size of the dictionary")
    add_workers(parser)
    args = parser.parse_args(argv)
    langs = args.langs.split(",")
    return run_script(
        "prepare_denoising.py",
        args.out,
        lambda: prepare(
            args.mono, langs, args.source, args.src, args.tgt, args.pieces, args.out, args.workers
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
