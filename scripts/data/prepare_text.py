#!/usr/bin/env python3
"""Binarise plain text for fairseq's language models and masked language models.

    python scripts/data/prepare_text.py --text book.txt --out DIR --words 50000 --tokenize moses
    python scripts/data/prepare_text.py --train A --valid B --test C --out DIR --pieces 32000

A file is plain or ``.xz``, a sentence or paragraph a line, an empty line between documents. Writes ``text/``,
``tokens/``, ``dict.txt``, ``data-bin/`` and, for pieces, ``spm.model`` under ``--out``.

``--text`` is split into three sets: one block in 50 is for validation and one for testing, spread evenly over
the text. A block is 20 lines or more, of whole documents unless there are fewer than 50 of them.

V of ``--words V`` and ``--pieces V`` is the size of the dictionary, including fairseq's four symbols and
those of ``--add-symbol``. fairseq rounds it up to a multiple of 8.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common import tokens  # noqa: E402
from scripts.common.files import (  # noqa: E402
    SPLITS,
    PrepareError,
    keep_settings,
    read_lines,
    run_script,
    step,
    train_pieces,
)
from scripts.data.arguments import add_language, add_tokenize, add_workers, preparing  # noqa: E402
from scripts.data.binarise import FAIRSEQ, all_pieces, binarise, dictionary, given, most_frequent  # noqa: E402
from scripts.data.split_text import Split  # noqa: E402


@dataclass
class Settings:
    """What a preparation is made of, besides the text."""

    unit: str  # words, pieces or gpt2-bpe
    size: int | None  # symbols of the dictionary; None: given by the files of gpt2-bpe
    tokenize: str = "none"
    language: str = "en"
    symbols: tuple[str, ...] = ()
    gpt2: Path | None = None

    def check(self) -> None:
        """Raises:
        PrepareError: settings that cannot be.
        """
        least = len(FAIRSEQ) + len(self.symbols) + 4
        if self.size is not None and self.size < least:
            raise PrepareError(f"--{self.unit} must be at least {least}, got {self.size}")
        if self.tokenize != "none" and self.unit != "words":
            raise PrepareError(f"--tokenize {self.tokenize} makes words; it goes with --words only")
        for symbol in self.symbols:
            if symbol.split() != [symbol]:
                raise PrepareError(f"--add-symbol takes a symbol without spaces, got '{symbol}'")
        if self.gpt2 is not None:
            for name in tokens.GPT2_FILES:
                if not (self.gpt2 / name).is_file():
                    raise PrepareError(
                        f"--gpt2-bpe {self.gpt2} has no {name}; it needs {', '.join(tokens.GPT2_FILES)}"
                    )

    def record(self) -> dict[str, object]:
        """As it is kept beside the results."""
        files = {}
        if self.gpt2 is not None:
            for name in tokens.GPT2_FILES:
                files[name] = hashlib.sha256((self.gpt2 / name).read_bytes()).hexdigest()
        return {
            "unit": self.unit,
            "size": self.size,
            "tokenize": self.tokenize,
            "language": self.language,
            "symbols": list(self.symbols),
            "gpt2_bpe": files,
        }


def prepare(sources: dict[str, Path], out: Path, settings: Settings, workers: int) -> None:
    """Check, unpack and split, encode, binarise.

    Args:
        sources: "train", "valid" and "test" -> a file, or "text" -> the file to split.
        out: folder to write.
        settings: how.
        workers: processes.
    """
    settings.check()
    if workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {workers}")
    fingerprints = {}
    plan = None
    for name, path in sources.items():
        digest = hashlib.sha256()
        for line in read_lines(path, blank=True):
            digest.update(line.encode() + b"\n")
        fingerprints[name] = digest.hexdigest()
    if "text" in sources:
        plan = Split.of(sources["text"])
    keep_settings(out / "prepared.json", {**settings.record(), "text": fingerprints})

    text = {split: out / "text" / split for split in SPLITS}
    for split in SPLITS:
        if plan is None:
            lines = partial(read_lines, sources[split], blank=True)
        else:
            lines = partial(plan.lines, split)
        step(text[split], lambda lines=lines: (line.encode() + b"\n" for line in lines()))  # type: ignore[misc]
    if plan is not None:
        print(f"split: {plan}")

    make: tokens.Maker
    if settings.unit == "pieces":
        assert settings.size is not None
        # sentencepiece counts three symbols of its own, of which the dictionary takes none over.
        size = settings.size - len(FAIRSEQ) - len(settings.symbols) + 3
        step(out / "spm.model", lambda: [train_pieces([text["train"]], size)])
        make = partial(tokens.pieces, str(out / "spm.model"))
    elif settings.gpt2 is not None:
        make = partial(tokens.gpt2, str(settings.gpt2))
    elif settings.tokenize == "moses":
        make = partial(tokens.moses, settings.language)
    else:
        make = tokens.spaces
    for split in SPLITS:
        step(out / "tokens" / split, lambda split=split: tokens.encoded(text[split], make, workers))  # type: ignore[misc]

    step(out / "dict.txt", lambda: dictionary(entries(out, settings), settings.symbols))
    binarise(out, workers)


def entries(out: Path, settings: Settings) -> list[tuple[str, int]]:
    """The dictionary, without added symbols: tokens and how often the training text has them."""
    if settings.gpt2 is not None:
        return given(settings.gpt2 / "dict.txt")
    assert settings.size is not None
    train = out / "tokens" / "train"
    if settings.unit == "pieces":
        return all_pieces(train, out / "spm.model")
    return most_frequent(train, settings.size - len(FAIRSEQ) - len(settings.symbols), settings.symbols)


def arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = preparing(__doc__)
    parser.add_argument("--text", type=Path, help="a file, to be split into three sets")
    for split in SPLITS:
        parser.add_argument(f"--{split}", type=Path, help=f"the {split} set, in place of --text")
    unit = parser.add_mutually_exclusive_group(required=True)
    unit.add_argument("--words", type=int, metavar="V", help="a dictionary of the V most frequent words")
    unit.add_argument("--pieces", type=int, metavar="V", help="train V sentencepiece byte pairs")
    unit.add_argument(
        "--gpt2-bpe", type=Path, metavar="DIR", help="encoder.json, vocab.bpe and dict.txt of GPT-2"
    )
    add_tokenize(parser, "split --words with sacremoses, or at spaces")
    add_language(parser)
    parser.add_argument(
        "--add-symbol",
        action="append",
        default=[],
        metavar="SYMBOL",
        help="put a symbol into the dictionary, such as '<mask>', even if the text does not have it; "
        "may be repeated",
    )
    add_workers(parser)
    args = parser.parse_args(argv)
    splits = [getattr(args, split) is not None for split in SPLITS]
    if args.text is not None and any(splits):
        parser.error("--text is split into three; it cannot be combined with --train, --valid or --test")
    if args.text is None and not all(splits):
        parser.error("give --text FILE, or all of --train FILE --valid FILE --test FILE")
    return args


def main(argv: list[str] | None = None) -> int:
    args = arguments(argv)
    sources = (
        {"text": args.text} if args.text is not None else {split: getattr(args, split) for split in SPLITS}
    )
    unit = "words" if args.words is not None else "pieces" if args.pieces is not None else "gpt2-bpe"
    settings = Settings(
        unit=unit,
        size=args.words if args.words is not None else args.pieces,
        tokenize=args.tokenize,
        language=args.language,
        symbols=tuple(dict.fromkeys(args.add_symbol)),
        gpt2=args.gpt2_bpe,
    )
    return run_script("prepare_text.py", args.out, lambda: prepare(sources, args.out, settings, args.workers))


if __name__ == "__main__":
    sys.exit(main())
