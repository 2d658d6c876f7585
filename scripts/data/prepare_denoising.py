#!/usr/bin/env python3
"""Split the text of a denoising pretraining, and a pair to fine-tune on, into the same sentencepiece pieces.

    python scripts/data/prepare_denoising.py --mono MONO --langs en,de --source PAIR --src en --tgt de \\
        --pieces 32768 --out DIR

reads ``MONO/{train,valid}.LANG`` and ``PAIR/{train,valid,test}.{src,tgt}`` (plain or ``.xz``), and writes
``spm.model``, ``dict.txt``, ``mono/{train,valid}.LANG`` and ``pair/{train,valid,test}.{src,tgt}`` under
``--out``, for ``fairseq-preprocess --srcdict dict.txt``. The pieces are made of the languages' training text.
Blank lines of ``MONO`` are left out.

A pair may have a language that ``MONO`` has not. With ``--joint`` the pieces are made of the pair's training
text, too, and of no more lines of each language than the pair has, so that it is not drowned. ``--lines`` and
``--pairs`` take less of the training text.

V of ``--pieces V`` is the size of the dictionary, including fairseq's four symbols; what a task adds to it
comes on top. With ``--mask`` the dictionary has ``<mask>`` itself: fairseq's BART gives up the row that
denoising added when it is fine-tuned, its ``transformer`` has to have as many rows before and after.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
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


@dataclass(frozen=True)
class Part:
    """What is taken of the training text.

    Attributes:
        lines: of each language, spread evenly; 0: all.
        pairs: the first ones; 0: all.
        joint: pieces are made of the pairs, too.
    """

    lines: int = 0
    pairs: int = 0
    joint: bool = False

    def __post_init__(self) -> None:
        for name, value in (("lines", self.lines), ("pairs", self.pairs)):
            if value < 0:
                raise PrepareError(f"--{name} must be at least 1, or 0 for all, got {value}")


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
    mono: Path,
    langs: list[str],
    pair: Path,
    src: str,
    tgt: str,
    size: int,
    out: Path,
    workers: int,
    part: Part | None = None,
    symbols: Sequence[str] = (),
) -> None:
    """Check, make pieces of the languages' text, split everything into them, count.

    Args:
        symbols: that the dictionary ends with.
    """
    part = part or Part()
    if workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {workers}")
    if size < 16:
        raise PrepareError(f"--pieces must be at least 16, got {size}")
    if not pair.is_dir():
        raise PrepareError(f"--source {pair} is not a folder")
    if src == tgt:
        raise PrepareError(f"--src and --tgt are both {src}; two sides were expected")
    found = {"mono": check_mono(mono, langs), "pair": check_pair(pair, src, tgt)}
    settings = {"pieces": size, "langs": langs, "src": src, "tgt": tgt, "part": asdict(part), **found}
    settings |= {"symbols": list(symbols)} if symbols else {}
    keep_settings(out / "prepared.json", settings)
    text = {name: out / "text" / name for name in found["mono"]}
    for name, path in text.items():
        split, _, lang = name.partition(".")
        lines = part.lines if split == "train" else 0
        step(path, partial(_lines, find_source(mono, split, lang), lines))
    sides = {name: find_source(pair, *name.split(".")) for name in found["pair"]}
    if part.pairs:
        for name in (f"train.{src}", f"train.{tgt}"):
            whole, sides[name] = sides[name], out / "text" / "pair" / name
            step(sides[name], partial(_first, whole, part.pairs))
    model, training = out / "spm.model", [path for name, path in text.items() if name.startswith("train.")]
    if part.joint:
        of_pair = [sides[f"train.{src}"], sides[f"train.{tgt}"]]
        training = [*_no_longer(training, of_pair[0]), *of_pair]
    # sentencepiece counts three symbols of its own, of which the dictionary takes none over.
    step(model, lambda: [train_pieces(training, size - len(FAIRSEQ) + 3, threads=workers)])
    make = partial(tokens.pieces, str(model))
    for folder, names in (("mono", text), ("pair", sides)):
        for name, path in names.items():
            step(out / folder / name, partial(tokens.encoded, path, make, workers))
    counted = [out / "mono" / f"train.{lang}" for lang in langs]
    if part.joint:
        counted += [out / "pair" / f"train.{side}" for side in (src, tgt)]
    step(out / "dict.txt", lambda: dictionary(entries(counted, model), symbols))


def _no_longer(training: list[Path], than: Path) -> list[Path]:
    """As many lines of each, at most, as another file has."""
    count = sum(1 for _ in read_lines(than))
    made = [path.with_name(f"pieces.{path.name}") for path in training]
    for path, short in zip(training, made, strict=True):
        step(short, partial(_lines, path, count))
    return made


def _first(path: Path, count: int) -> Iterator[bytes]:
    return (f"{line}\n".encode() for line in islice(read_lines(path), count))


def _text(path: Path) -> Iterator[str]:
    return (line for line in read_lines(path, blank=True) if line.strip())


def _lines(path: Path, count: int) -> Iterator[bytes]:
    """``count`` of the lines, spread evenly, or all: 0."""
    total = sum(1 for _ in _text(path)) if count else 1
    wanted = min(count, total) if count else total
    for number, line in enumerate(_text(path)):
        if not count or (number + 1) * wanted // total > number * wanted // total:
            yield f"{line}\n".encode()


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument("--mono", type=Path, required=True, help="folder of {train,valid}.LANG[.xz]")
    parser.add_argument("--langs", required=True, metavar="L,L", help="languages of the pretraining")
    add_pair(parser)
    parser.add_argument("--pieces", type=int, required=True, metavar="V", help="size of the dictionary")
    parser.add_argument(
        "--lines", type=int, default=0, metavar="N", help="of each language's training text (default: 0, all)"
    )
    parser.add_argument(
        "--pairs", type=int, default=0, metavar="N", help="the first N for training (default: 0, all)"
    )
    parser.add_argument(
        "--joint", action="store_true", help="make the pieces of the pair's training text, too"
    )
    parser.add_argument("--mask", action="store_true", help="the dictionary has <mask>")
    add_workers(parser)
    args = parser.parse_args(argv)
    langs = args.langs.split(",")
    return run_script(
        "prepare_denoising.py",
        args.out,
        lambda: prepare(
            args.mono,
            langs,
            args.source,
            args.src,
            args.tgt,
            args.pieces,
            args.out,
            args.workers,
            Part(args.lines, args.pairs, args.joint),
            ["<mask>"] if args.mask else [],
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
