"""Lines of tokens -> a dictionary and fairseq's binary files."""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from scripts.common.files import SPLITS, PrepareError, read_lines

#: fairseq's own symbols, which no dictionary file lists.
FAIRSEQ = ("<s>", "<pad>", "</s>", "<unk>")

#: fairseq rounds the size of a dictionary up to a multiple of this, with words that no text has.
MULTIPLE = 8

Entries = list[tuple[str, int]]


def _count(tokens: Path) -> Counter[str]:
    """How often a file has each token."""
    counts: Counter[str] = Counter()
    for line in read_lines(tokens, blank=True):
        counts.update(line.split())
    return counts


def _ordered(counts: dict[str, int]) -> Entries:
    """The most frequent first, as fairseq orders them."""
    return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))


def most_frequent(tokens: Path, size: int, added: Sequence[str]) -> Entries:
    """The ``size`` most frequent tokens of a file, or a few less where rounding up makes up for them.

    Raises:
        PrepareError: it has not so many.
    """
    counts = _count(tokens)
    for symbol in (*FAIRSEQ, *added):
        counts.pop(symbol, None)
    if len(counts) + MULTIPLE <= size:
        most = len(counts) + len(FAIRSEQ) + len(added)
        raise PrepareError(
            f"the training text has only {len(counts)} different words; give --words at most {most}"
        )
    return _ordered(counts)[:size]


def all_pieces(tokens: Path | Sequence[Path], model: Path) -> Entries:
    """Every piece of a sentencepiece model, those too that the training text happens not to use."""
    counts: Counter[str] = Counter()
    for path in [tokens] if isinstance(tokens, Path) else tokens:
        counts.update(_count(path))
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(model))
    numbers = range(pieces.get_piece_size())
    own = [n for n in numbers if not (pieces.is_control(n) or pieces.is_unknown(n))]
    return _ordered({piece: counts[piece] for piece in map(pieces.id_to_piece, own)})


def given(path: Path) -> Entries:
    """What a dictionary file says.

    Raises:
        PrepareError: it is none.
    """
    entries = []
    for number, line in enumerate(read_lines(path), start=1):
        token, _, count = line.rpartition(" ")
        if not token or not count.isdecimal():
            raise PrepareError(f"line {number} of {path} is not a token and its count")
        entries.append((token, int(count)))
    return entries


def dictionary(entries: Entries, added: Sequence[str]) -> Iterator[bytes]:
    """A dictionary file: the entries, the added symbols, and what fairseq would add to round up."""
    known = dict(entries)
    known.update((symbol, 0) for symbol in added if symbol not in known)
    filler = 0
    while (len(known) + len(FAIRSEQ)) % MULTIPLE:
        known.setdefault(f"madeupword{filler:04d}", 0)
        filler += 1
    return (f"{token} {count}\n".encode() for token, count in known.items())


def binarise(out: Path, workers: int) -> None:
    """``out/tokens`` by ``out/dict.txt`` to ``out/data-bin``, unless it is there.

    Raises:
        PrepareError: fairseq-preprocess failed, or did not take every line.
    """
    target = out / "data-bin"
    if target.is_dir():
        print(f"{target}: already there")
        return
    temporary = out / "data-bin.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    arguments = ["--only-source", "--srcdict", str(out / "dict.txt"), "--destdir", str(temporary)]
    for split in SPLITS:
        arguments += [f"--{split}pref", str(out / "tokens" / split)]
    arguments += ["--workers", str(workers)]
    print(f"$ fairseq-preprocess {shlex.join(arguments)}")
    _preprocess(arguments)
    for split in SPLITS:
        _check(out / "tokens" / split, temporary / split)
    os.replace(temporary, target)
    with open(target / "dict.txt", encoding="utf-8") as file:
        print(f"{target}: written, V = {sum(1 for _ in file) + len(FAIRSEQ):,}")


def _preprocess(arguments: list[str]) -> None:
    """fairseq-preprocess in this process, without what it and fairseq's parts say when they are imported."""
    logging.disable(logging.INFO)
    try:
        from fairseq import options
        from fairseq_cli import preprocess

        preprocess.main(options.get_preprocessing_parser().parse_args(arguments))
    except Exception as error:  # whatever it is, the folder it wrote to must not become data-bin
        raise PrepareError(f"fairseq-preprocess failed ({type(error).__name__}: {error})") from error
    finally:
        logging.disable(logging.NOTSET)


def _check(tokens: Path, prefix: Path) -> None:
    """Count what was binarised, and say how much of it is unknown.

    Raises:
        PrepareError: it is not every line.
    """
    from fairseq.data.indexed_dataset import MMapIndexedDataset

    data = MMapIndexedDataset(str(prefix))
    wanted = sum(1 for _ in read_lines(tokens, blank=True))
    if len(data) != wanted:
        raise PrepareError(f"{tokens} has {wanted} lines and fairseq-preprocess took {len(data)} of them")
    stream = np.memmap(f"{prefix}.bin", dtype=data._index.dtype, mode="r")
    unknown = int((stream == FAIRSEQ.index("<unk>")).sum())
    print(
        f"{tokens.name}: {wanted:,} lines, {len(stream):,} tokens including ends of lines, "
        f"{unknown / len(stream):.2%} unknown"
    )
