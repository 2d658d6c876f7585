#!/usr/bin/env python3
"""Binarise labelled sentences, to fine-tune a masked language model with fairseq's sentence_prediction.

    python scripts/data/prepare_labelled.py --source DIR --out DIR --dict PRETRAINING/dict.txt \\
        --pieces spm.model

reads ``{train,valid,test}.tsv`` (plain or ``.xz``), a label, a tab and a text on each line, and writes
``input0/`` and ``label/`` under ``--out``. The text is split as it was for the pretraining (into pieces,
words of Moses, or at spaces) and binarised with the pretraining's dictionary, so that a number means the same
token.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator
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
)
from scripts.data.arguments import add_language, add_tokenize, add_workers, preparing  # noqa: E402
from scripts.data.binarise import FAIRSEQ, binarise, given  # noqa: E402


def find_source(folder: Path, split: str) -> Path:
    """``split.tsv`` or ``split.tsv.xz`` in ``folder``.

    Raises:
        PrepareError: there is neither.
    """
    for name in (f"{split}.tsv", f"{split}.tsv.xz"):
        if (folder / name).is_file():
            return folder / name
    raise PrepareError(f"there is no {split}.tsv or {split}.tsv.xz in {folder}")


def read_pairs(path: Path) -> Iterator[tuple[str, str]]:
    """The lines of a file as (label, text).

    Raises:
        PrepareError: a line is not a label, a tab and a text, or a label that fairseq cannot take.
    """
    for number, line in enumerate(read_lines(path), start=1):
        label, tab, text = line.partition("\t")
        if not tab:
            raise PrepareError(f"line {number} of {path} has no tab; a label, a tab and a text were expected")
        label, text = label.strip(), text.strip()
        if not label or not text:
            what = "text" if label else "label"
            raise PrepareError(f"line {number} of {path} has no {what}; both sides of the tab need one")
        if label.split() != [label] or label in FAIRSEQ:
            raise PrepareError(
                f"line {number} of {path} has the label '{label}'; a label is one word, and not one of "
                f"{' '.join(FAIRSEQ)}"
            )
        yield label, text


def check(folder: Path) -> tuple[dict[str, str], Counter[str]]:
    """Read everything once. Returns "train" -> a fingerprint of its lines, and the training set's labels.

    Raises:
        PrepareError: a file is missing or has a bad line, or a label is not in the training set.
    """
    fingerprints, known = {}, Counter[str]()
    for split in SPLITS:
        path = find_source(folder, split)
        digest, labels = hashlib.sha256(), Counter[str]()
        for number, (label, text) in enumerate(read_pairs(path), start=1):
            if split != "train" and label not in known:
                raise PrepareError(
                    f"line {number} of {path} has the label '{label}', and the training set has only "
                    f"{', '.join(ordered(known))}"
                )
            labels[label] += 1
            digest.update(f"{label}\t{text}\n".encode())
        fingerprints[split] = digest.hexdigest()
        known = known or labels
        if len(known) < 2:
            raise PrepareError(
                f"all of {path} has the label '{next(iter(known))}'; at least two labels were expected"
            )
    return fingerprints, known


def ordered(labels: Counter[str]) -> list[str]:
    """Labels in the order of their numbers: numbers by value, words by the alphabet."""
    is_number = all(label.isdecimal() for label in labels)
    return sorted(labels, key=lambda label: (int(label), label) if is_number else (0, label))


def check_tokens(dictionary: Path, pieces: Path | None) -> None:
    """Refuse a sentencepiece model that the dictionary was not made with.

    Raises:
        PrepareError: either is missing or damaged, or the dictionary lacks some of the pieces.
    """
    known = {token for token, _ in given(dictionary)}
    if pieces is None:
        return
    if not pieces.is_file():
        raise PrepareError(f"there is no file {pieces}")
    try:
        model = sentencepiece.SentencePieceProcessor(model_file=str(pieces))
    except (RuntimeError, OSError):
        raise PrepareError(f"{pieces} is no sentencepiece model") from None
    all_pieces = {model.id_to_piece(number) for number in range(model.get_piece_size())}
    # A dictionary made of a text lacks the few pieces that the text happens not to use.
    missing = all_pieces - known
    if len(missing) > len(all_pieces) / 2:
        raise PrepareError(
            f"{dictionary} lacks {len(missing)} of the {len(all_pieces)} pieces of {pieces}; give the two "
            "that the model was pretrained with"
        )


def prepare(
    source: Path, out: Path, dictionary: Path, pieces: Path | None, tokenize: str, language: str, workers: int
) -> None:
    """Check, make tokens, binarise."""
    if workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {workers}")
    if not source.is_dir():
        raise PrepareError(f"--source {source} is not a folder")
    check_tokens(dictionary, pieces)
    fingerprints, labels = check(source)
    files = {"dict": dictionary} | ({"pieces": pieces} if pieces else {})
    settings: dict[str, object] = {"text": fingerprints, "tokenize": tokenize, "language": language}
    settings |= {"dict": None, "pieces": None}
    settings |= {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    keep_settings(out / "prepared.json", settings)

    make: tokens.Maker = tokens.spaces
    if pieces is not None:
        make = partial(tokens.pieces, str(pieces))
    elif tokenize == "moses":
        make = partial(tokens.moses, language)
    inputs, classes = out / "parts" / "input0", out / "parts" / "label"
    for split in SPLITS:
        column = partial(lines_of, find_source(source, split))
        step(out / "parts" / "text" / split, partial(column, 1))
        step(
            inputs / "tokens" / split, partial(tokens.encoded, out / "parts" / "text" / split, make, workers)
        )
        step(classes / "tokens" / split, partial(column, 0))
    step(inputs / "dict.txt", lambda: [dictionary.read_bytes()])
    step(classes / "dict.txt", lambda: (f"{label} {labels[label]}\n".encode() for label in ordered(labels)))
    for part in (inputs, classes):
        target = out / part.name
        if target.is_dir():
            print(f"{target}: already there")
            continue
        binarise(part, workers)
        os.replace(part / "data-bin", target)
        print(f"{target}: written")
    longest = max(
        len(line.split()) for split in SPLITS for line in read_lines(inputs / "tokens" / split, blank=True)
    )
    print(f"classes: {len(labels)} ({', '.join(ordered(labels))}); the longest text has {longest} tokens")


def lines_of(path: Path, column: int) -> Iterator[bytes]:
    """Labels (0) or texts (1)."""
    return (pair[column].encode() + b"\n" for pair in read_pairs(path))


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder of {train,valid,test}.tsv[.xz]")
    parser.add_argument("--dict", type=Path, required=True, help="dict.txt of the pretraining's data-bin")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--pieces", type=Path, metavar="MODEL", help="spm.model of the pretraining")
    add_tokenize(how, "without --pieces: split words with sacremoses, or at spaces")
    add_language(parser)
    add_workers(parser, 1)
    args = parser.parse_args(argv)
    return run_script(
        "prepare_labelled.py",
        args.out,
        lambda: prepare(
            args.source, args.out, args.dict, args.pieces, args.tokenize, args.language, args.workers
        ),
    )


if __name__ == "__main__":
    sys.exit(main())
