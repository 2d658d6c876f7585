#!/usr/bin/env python3
"""Clean parallel text, split it into joint sentencepiece pieces, and make their dictionary.

    python scripts/data/prepare_translation.py --source TEXT --out DIR --src en --tgt de --pieces 32768

reads ``TEXT/{train,valid,test}.{en,de}`` (plain or ``.xz``), writes ``pieces/{train,valid,test}.{en,de}``,
``spm.model`` and ``dict.txt`` under ``--out``, for ``fairseq-preprocess --srcdict dict.txt
--joined-dictionary``. ``--tokenize moses`` and ``--normalize`` also write ``words/``; cleaning by words and
``--lowercase`` also write ``clean/``.

Pairs that are too long, or whose sides differ too much in length, are left out of the training and validation
sets. The test set stays whole. V of ``--pieces V`` is the size of the dictionary, including fairseq's four
symbols and the tags.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import sentencepiece

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
from scripts.common.progress import watched  # noqa: E402
from scripts.data.arguments import add_pair, add_tokenize, add_workers, preparing  # noqa: E402
from scripts.data.binarise import FAIRSEQ, dictionary  # noqa: E402
from scripts.data.clean_pairs import Limits, read_sides, select, split_off, unique  # noqa: E402
from scripts.data.parallel import write_together  # noqa: E402
from scripts.data.prepare_data import find_source  # noqa: E402

#: Of --normalize.
KINDS = sorted((*tokens.NORMALIZERS, tokens.PUNCTUATION))


@dataclass(frozen=True)
class Settings:
    """How a text is prepared.

    Attributes:
        src, tgt: ends of the names of its files.
        pieces: symbols of the dictionary.
        tokenize: "moses" or "none".
        lowercase: before pieces are made.
        normalize: some of ``KINDS``.
        max_words, max_pieces: length of the longest sentence to train on, 0 for any.
        ratio: of the longer side to the shorter, at most, in words with max_words and in pieces without; 0
            for any.
        unique: leave out repeated pairs of the training set.
        valid_every: without a validation set, every so many'th pair of the training set is for it.
        sample: sentences, at most, that the pieces are made of, 0 for all.
        tags: ``SPLIT.tags`` has a symbol for the beginning of each source sentence.
    """

    src: str
    tgt: str
    pieces: int
    tokenize: str = "none"
    lowercase: bool = False
    normalize: tuple[str, ...] = ()
    max_words: int = 0
    max_pieces: int = 250
    ratio: float = 1.5
    unique: bool = False
    valid_every: int = 0
    sample: int = 0
    tags: bool = False

    @property
    def sides(self) -> tuple[str, ...]:
        return (self.src, self.tgt, "tags") if self.tags else (self.src, self.tgt)

    @property
    def has_words(self) -> bool:
        return self.tokenize != "none" or bool(self.normalize)


def check(source: Path, settings: Settings) -> dict[str, str]:
    """Read everything once. Returns "train.en" -> a fingerprint of its lines.

    Raises:
        PrepareError: a setting cannot be, or a file is missing, empty or damaged, or sides differ in length.
    """
    if settings.src == settings.tgt:
        raise PrepareError(f"--src and --tgt are both {settings.src}; two languages were expected")
    if settings.pieces < 16:
        raise PrepareError(f"--pieces must be at least 16, got {settings.pieces}")
    if settings.ratio and settings.ratio < 1:
        raise PrepareError(f"--ratio must be at least 1, or 0 for any, got {settings.ratio}")
    if not source.is_dir():
        raise PrepareError(f"--source {source} is not a folder")
    fingerprints = {}
    for split in SPLITS:
        if split == "valid" and settings.valid_every and not any(source.glob("valid.*")):
            continue
        counts = {}
        for side in settings.sides:
            path = find_source(source, split, side)
            digest = hashlib.sha256()
            counts[path] = 0
            for line in watched(read_lines(path, blank=True), f"{path.name}: checking", None):
                digest.update(line.encode() + b"\n")
                counts[path] += 1
            fingerprints[f"{split}.{side}"] = digest.hexdigest()
        if len(set(counts.values())) > 1:
            told = " and ".join(f"{path} has {count:,} lines" for path, count in counts.items())
            raise PrepareError(
                f"{told}; they must have the same number, line n of one being the translation of line n of "
                "the other"
            )
    return fingerprints


def prepare(source: Path, out: Path, settings: Settings, workers: int) -> None:
    """Check, make words, clean, make pieces, clean, count."""
    if workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {workers}")
    fingerprints = check(source, settings)
    recorded: dict[str, object] = {**asdict(settings), "normalize": list(settings.normalize)}
    keep_settings(out / "prepared.json", {**recorded, "text": fingerprints})
    splits = [split for split in SPLITS if f"{split}.{settings.src}" in fingerprints]

    text = {(split, side): find_source(source, split, side) for split in splits for side in settings.sides}
    if settings.has_words:
        for (split, side), path in list(text.items()):
            if side != "tags":
                make = partial(tokens.words, side, settings.tokenize, settings.normalize)
                text[split, side] = out / "words" / f"{split}.{side}"
                step(text[split, side], partial(tokens.encoded, path, make, workers))
    text = clean(text, out, settings)

    # sentencepiece counts three symbols of its own, of which the dictionary takes none over.
    symbols = (
        sorted({line for split in splits for line in read_lines(text[split, "tags"])})
        if settings.tags
        else []
    )
    size = settings.pieces - len(FAIRSEQ) - len(symbols) + 3
    train = [text["train", side] for side in (settings.src, settings.tgt)]
    step(out / "spm.model", lambda: [train_pieces(train, size, settings.sample, workers)])

    encoded = encode(text, out, settings, workers)
    model = out / "spm.model"
    step(out / "dict.txt", lambda: dictionary(entries([encoded[0], encoded[1]], model), symbols))


def clean(text: dict[tuple[str, str], Path], out: Path, settings: Settings) -> dict[tuple[str, str], Path]:
    """Text without what words can tell to be bad, lowercased, split: what pieces are made of."""
    cleaned = dict(text)
    splits = sorted({split for split, _ in text}, key=SPLITS.index)
    if settings.valid_every and "valid" not in splits:
        splits.insert(1, "valid")
    limits = Limits(settings.max_words, settings.ratio if settings.max_words else 0)
    for split in splits:
        origin = "train" if (split, settings.src) not in text else split
        held_out = settings.valid_every and "valid" not in {name for name, _ in text}
        kept = limits if split != "test" else Limits()
        once = settings.unique and origin == "train"
        if not (kept or held_out or once or settings.lowercase):
            continue
        for side in settings.sides:
            cleaned[split, side] = out / "clean" / f"{split}.{side}"
        targets = tuple(cleaned[split, side] for side in settings.sides)
        if all(path.is_file() for path in targets):
            print(f"{targets[0]}: already there")
            continue
        rows = read_sides([text[origin, side] for side in settings.sides])
        if once:
            rows = unique(rows)
        rows = select(rows, kept, origin != "test")
        if held_out and split != "test":
            rows = split_off(rows, settings.valid_every, split == "valid")
        if settings.lowercase:
            rows = (tuple(line.lower() for line in row) for row in rows)
        report(split, out, write_together(targets, watched(rows, f"{split}: cleaning", None)))
    return cleaned


def encode(
    text: dict[tuple[str, str], Path], out: Path, settings: Settings, workers: int
) -> tuple[Path, Path]:
    """Pieces of every split, without what their number tells to be bad. Returns the two training files."""
    make = partial(tokens.pieces, str(out / "spm.model"))
    splits = sorted({split for split, _ in text}, key=SPLITS.index)
    for split in splits:
        targets = tuple(out / "pieces" / f"{split}.{side}" for side in (settings.src, settings.tgt))
        if all(path.is_file() for path in targets):
            print(f"{targets[0]}: already there")
            continue
        whole = {side: out / "encoded" / f"{split}.{side}" for side in (settings.src, settings.tgt)}
        for side, path in whole.items():
            step(path, partial(tokens.encoded, text[split, side], make, workers))
        columns = [*whole.values(), *([text[split, "tags"]] if settings.tags else [])]
        # What was cleaned by words is not cleaned by the ratio of pieces, too.
        ratio = 0 if settings.max_words else settings.ratio
        limits = Limits(settings.max_pieces, ratio) if split != "test" else Limits()
        rows: Iterator[tuple[str, ...]] = select(read_sides(columns), limits, split != "test")
        if settings.tags:
            rows = ((f"{mark} {left}", right) for left, right, mark in rows)
        report(split, out, write_together(targets, watched(rows, f"{split}: writing", None)))
        for path in whole.values():
            path.unlink()
    # A kill may have left some.
    shutil.rmtree(out / "encoded", ignore_errors=True)
    return out / "pieces" / f"train.{settings.src}", out / "pieces" / f"train.{settings.tgt}"


def report(split: str, out: Path, count: int) -> None:
    """How many pairs were kept.

    Raises:
        PrepareError: none was.
    """
    if not count:
        raise PrepareError(
            f"no pair of the {split} set is left after cleaning; check --ratio and the limits of length"
        )
    print(f"{out}: {split} set of {count:,} pairs")


def entries(pieces: list[Path], model: Path) -> list[tuple[str, int]]:
    """Every piece of the model and how often both sides have it, the most frequent first."""
    counts: Counter[str] = Counter()
    for path in pieces:
        for line in watched(read_lines(path), f"{path.name}: counting", None):
            counts.update(line.split())
    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    numbers = range(processor.get_piece_size())
    own = [n for n in numbers if not (processor.is_control(n) or processor.is_unknown(n))]
    known = {piece: counts[piece] for piece in map(processor.id_to_piece, own)}
    return sorted(known.items(), key=lambda entry: (-entry[1], entry[0]))


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    add_pair(parser)
    add = parser.add_argument
    add("--pieces", type=int, required=True, metavar="V", help="size of the dictionary")
    add_tokenize(parser, "split words with sacremoses, or keep the text as it is")
    add("--lowercase", action="store_true", help="lowercase the text")
    add("--normalize", action="append", default=[], choices=KINDS, help="may be repeated")
    add(
        "--max-words",
        type=int,
        default=0,
        metavar="N",
        help="longest sentence, in words; 0: any (default: %(default)s)",
    )
    add(
        "--max-pieces",
        type=int,
        default=250,
        metavar="N",
        help="longest sentence, in pieces; 0: any (default: %(default)s)",
    )
    add(
        "--ratio",
        type=float,
        default=1.5,
        help="largest ratio of the sides' lengths; 0: any (default: %(default)s)",
    )
    add("--unique", action="store_true", help="train on each pair once")
    add(
        "--valid-every",
        type=int,
        default=0,
        metavar="N",
        help="take every N-th pair of the training set for validation",
    )
    add(
        "--sample",
        type=int,
        default=0,
        metavar="N",
        help="make pieces from N sentences; 0: from all (default: %(default)s)",
    )
    add("--tags", action="store_true", help="put the tags in SPLIT.tags before the source sentences")
    add_workers(parser)
    args = vars(parser.parse_args(argv))
    source, out, workers = args.pop("source"), args.pop("out"), args.pop("workers")
    settings = Settings(**{**args, "normalize": tuple(args["normalize"])})
    return run_script("prepare_translation.py", out, lambda: prepare(source, out, settings, workers))


if __name__ == "__main__":
    sys.exit(main())
