#!/usr/bin/env python3
"""Binarise documents with labels, for --task mhe_multilabel.

    python scripts/data/prepare_multilabel.py --source DIR --out OUT
    python scripts/data/prepare_multilabel.py --source DIR --out OUT --dict dict.txt --model spm.model

DIR has {train,valid,test}.tsv, plain or .xz, a line a document: its labels (label,label or label label; a
label with commas in quotation marks), a tab and its text. Or the files of the extreme classification
repository: trn_X_Y.txt and tst_X_Y.txt with their raw texts trn_X.txt and tst_X.txt, and names in Y.txt.
Without a validation set some of the training documents are one. --dict and --model are a pretraining's.

Writes OUT/data-bin, and OUT/labels.codes, the codebook of labels for --mhe-codebook. Labels are in the order
of their frequency in the training set; a blank in a label becomes '\u2581'. Training documents without a
label are left out; labels that no training document has can be found by no model, and count as not found.
Both are told.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
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
    write_whole,
)
from scripts.common.naming import first_of  # noqa: E402
from scripts.data.arguments import add_workers, preparing  # noqa: E402
from scripts.data.binarise import (  # noqa: E402
    FAIRSEQ,
    MULTIPLE,
    all_pieces,
    binarise,
    dictionary,
    given,
    most_frequent,
)
from scripts.data.label_sources import Document, Source, find_sources  # noqa: E402
from scripts.data.prepare_labelled import check_tokens  # noqa: E402

#: What stands for a blank in a label: fairseq's dictionaries have none.
BLANK = "\u2581"

#: Share of the training documents that validate where there is no set for it, and how many at most.
_VALID_SHARE, _VALID_MOST = 0.05, 2000

#: Labels and lines that are named where something is told.
_NAMED = 5


def words() -> tokens.Encoder:
    """Words in lower case, without punctuation."""
    return lambda line: " ".join(re.findall(r"\w+", line.lower()))


@dataclass
class Checked:
    """What was found in a set.

    Attributes:
        documents, empty, repeated: how many; with no text; labels given twice in a document.
        unlabelled: lines without a label.
        labels: how many documents have each.
        fingerprint: of all lines.
    """

    documents: int = 0
    empty: int = 0
    repeated: int = 0
    unlabelled: list[int] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    fingerprint: str = ""


def symbol(label: str) -> str:
    """A label as the dictionary has it."""
    return BLANK.join(label.split())


def check(source: Source) -> Checked:
    """Read a set once.

    Raises:
        PrepareError: it has a bad line, or a label that fairseq cannot take.
    """
    found, digest = Checked(), hashlib.sha256()
    source.check()
    for document in source.documents():
        found.documents += 1
        found.empty += not document.text
        found.repeated += document.repeated
        if not document.labels:
            found.unlabelled.append(document.line)
        for label in document.labels:
            if symbol(label) in FAIRSEQ:
                raise PrepareError(
                    f"line {document.line} of {source.labels} has the label '{label}', one of fairseq's own "
                    f"symbols {' '.join(FAIRSEQ)}; give it another name"
                )
        found.labels.update(document.labels)
        digest.update(json.dumps([document.labels, document.text]).encode())
    found.fingerprint = digest.hexdigest()
    return found


def check_names(labels: Counter[str]) -> None:
    """Raises:
    PrepareError: two labels that would be one symbol, or no label at all.
    """
    if not labels:
        raise PrepareError("no training document has a label; labels stand before the tab")
    known: dict[str, str] = {}
    for label in labels:
        other = known.setdefault(symbol(label), label)
        if other != label:
            raise PrepareError(
                f"the labels '{other}' and '{label}' are the same but for blanks and '{BLANK}', which stands "
                "for a blank; rename one"
            )


def tell(split: str, checked: Checked, known: Counter[str]) -> None:
    """Say what is in a set, and what is wrong with some of it."""
    notes = []
    if checked.unlabelled:
        what = "left out" if split == "train" else "not counted in the measures"
        lines = first_of(checked.unlabelled, _NAMED)
        notes.append(f"{len(checked.unlabelled):,} without a label, {what} (lines {lines})")
    if checked.empty:
        notes.append(f"{checked.empty:,} without a text, kept")
    if checked.repeated:
        notes.append(f"{checked.repeated:,} labels given twice in a document, taken once")
    unknown = sorted(label for label in checked.labels if label not in known)
    if unknown:
        times = sum(checked.labels[label] for label in unknown)
        notes.append(
            f"{len(unknown):,} labels, {times:,} times, that no training document has: never found "
            f"({first_of(unknown, _NAMED)})"
        )
    pairs = sum(checked.labels.values())
    print(
        f"{split}: {checked.documents:,} documents, {len(checked.labels):,} labels, "
        f"{pairs / max(1, checked.documents - len(checked.unlabelled)):.2f} a document"
        + "".join(f"; {note}" for note in notes)
    )


@dataclass(frozen=True)
class Split:
    """Documents of a set: those of a source, or some of the training's.

    Attributes:
        source: where they are.
        lines: which of its lines; None: all.
        needs_label: documents without a label are none of it.
    """

    source: Source
    lines: frozenset[int] | None
    needs_label: bool

    def documents(self) -> Iterator[Document]:
        for document in self.source.documents():
            if (document.labels or not self.needs_label) and (
                self.lines is None or document.line in self.lines
            ):
                yield document

    def texts(self) -> Iterator[bytes]:
        return (" ".join(document.text.split()).encode() + b"\n" for document in self.documents())

    def labels(self) -> Iterator[bytes]:
        return ((" ".join(map(symbol, document.labels)) + "\n").encode() for document in self.documents())


def splits_of(sources: dict[str, Source], checked: dict[str, Checked]) -> dict[str, Split]:
    """The three sets; without one for validation it is a part of the training's, the same on every run."""
    found = {split: Split(source, None, split == "train") for split, source in sources.items()}
    if "valid" not in sources:
        without = set(checked["train"].unlabelled)
        usable = [line for line in range(1, checked["train"].documents + 1) if line not in without]
        size = min(_VALID_MOST, int(len(usable) * _VALID_SHARE))
        if size < 1:
            raise PrepareError(
                f"there is no validation set, and the training set has only {len(usable)} documents with "
                "labels, too few to take some of them; give valid.tsv"
            )
        valid = frozenset(random.Random(1).sample(usable, size))
        found["train"] = Split(sources["train"], frozenset(usable) - valid, True)
        found["valid"] = Split(sources["train"], valid, False)
        print(f"valid: {size:,} documents of the training set")
    return found


def prepare(args: argparse.Namespace) -> None:
    """Check, make tokens, binarise, make the codebook."""
    out: Path = args.out
    if args.workers < 1:
        raise PrepareError(f"--workers must be at least 1, got {args.workers}")
    a, b = propensity(args.propensity)
    for name in ("words", "pieces"):
        if getattr(args, name) is not None and getattr(args, name) < 2 * MULTIPLE:
            raise PrepareError(f"--{name} must be at least {2 * MULTIPLE}, got {getattr(args, name)}")
    if (args.dict is None) != (args.model is None):
        raise PrepareError("--dict and --model go together: the dict.txt and spm.model of a pretraining")
    if args.dict is not None:
        check_tokens(args.dict, args.model)
    sources = find_sources(args.source, args.separator)
    checked = {split: check(source) for split, source in sources.items()}
    splits = splits_of(sources, checked)
    labels: Counter[str] = Counter()
    for document in splits["train"].documents():
        labels.update(document.labels)
    check_names(labels)
    for split, each in checked.items():
        tell(split, each, labels)
    names = sources["train"].names
    if names is not None:
        unused = [name for name in names if name not in labels]
        if unused:
            print(
                f"labels: {len(unused):,} of {len(names):,} have no training document, left out "
                f"({first_of(unused, _NAMED)})"
            )
    settings: dict[str, object] = {split: each.fingerprint for split, each in checked.items()}
    settings |= {"pieces": args.pieces, "words": args.words, "separator": args.separator, "by": args.by}
    settings |= {"seed": args.seed, "lengths": args.lengths, "propensity": args.propensity}
    for name in ("dict", "model"):
        path = getattr(args, name)
        settings[name] = None if path is None else hashlib.sha256(path.read_bytes()).hexdigest()
    keep_settings(out / "prepared.json", settings)

    texts, classes = out / "parts" / "input0", out / "parts" / "label"
    for split, part in splits.items():
        step(texts / "text" / split, part.texts)
        step(classes / "tokens" / split, part.labels)
    make: tokens.Maker = words
    model = args.model
    if args.pieces is not None:
        model = out / "spm.model"
        step(model, lambda: [train_pieces([texts / "text" / "train"], args.pieces - len(FAIRSEQ) + 3)])
    if model is not None:
        make = partial(tokens.pieces, str(model))
    for split in SPLITS:
        step(texts / "tokens" / split, partial(tokens.encoded, texts / "text" / split, make, args.workers))
    step(texts / "dict.txt", lambda: dictionary(entries(args, texts, model), []))
    ordered = sorted(labels.items(), key=lambda each: (-each[1], each[0]))
    step(classes / "dict.txt", lambda: (f"{symbol(name)} {count}\n".encode() for name, count in ordered))
    bin_folder = out / "data-bin"
    for part_folder in (texts, classes):
        target = bin_folder / part_folder.name
        if target.is_dir():
            print(f"{target}: already there")
            continue
        binarise(part_folder, args.workers)
        bin_folder.mkdir(exist_ok=True)
        os.replace(part_folder / "data-bin", target)
    documents = sum(1 for _ in read_lines(classes / "tokens" / "train", blank=True))
    facts = {"documents": documents, "a": a, "b": b}
    write_whole(bin_folder / "multilabel.json", [json.dumps(facts).encode() + b"\n"])
    codes(args, bin_folder)


def entries(args: argparse.Namespace, texts: Path, model: Path | None) -> list[tuple[str, int]]:
    """The tokens' dictionary, with how often the training text has each."""
    if args.dict is not None:
        return given(args.dict)
    train = texts / "tokens" / "train"
    if model is not None:
        return all_pieces(train, model)
    if args.words is not None:
        return most_frequent(train, args.words - len(FAIRSEQ), [])
    counts: Counter[str] = Counter()
    for line in read_lines(train, blank=True):
        counts.update(line.split())
    # A word of one document or two tells nothing, and a dictionary has tens of thousands of them.
    usual = [(word, count) for word, count in counts.items() if count >= 3 and word not in FAIRSEQ]
    return sorted(usual, key=lambda entry: (-entry[1], entry[0]))


def codes(args: argparse.Namespace, folder: Path) -> None:
    """The codebook, unless it is there.

    Raises:
        PrepareError: `mhe assign` refuses.
    """
    target = args.out / "labels.codes"
    if target.is_file():
        print(f"{target}: already there")
        return
    from mhe_fairseq.cli.main import main as mhe

    line = ["assign", "--labels", "--data", str(folder), "--by", args.by, "--seed", str(args.seed)]
    line += [] if args.lengths is None else ["--lengths", args.lengths]
    print(f"$ mhe {' '.join(line)} -o {target}")
    if mhe([*line, "-o", str(target)]):
        raise PrepareError(f"the codebook {target} was not made; the data are complete")


def propensity(text: str) -> tuple[float, float]:
    """A and B.

    Raises:
        PrepareError: not two numbers.
    """
    try:
        a, b = map(float, text.split(","))
    except ValueError:
        raise PrepareError(f"--propensity is two numbers A,B such as 0.55,1.5; got {text}") from None
    return a, b


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument("--source", type=Path, required=True, help="folder with the sets")
    parser.add_argument(
        "--separator", choices=("comma", "blank"), help="between labels (default: commas, if there is any)"
    )
    unit = parser.add_mutually_exclusive_group()
    unit.add_argument(
        "--words", type=int, metavar="V", help="a dictionary of V words (default: all that occur three times)"
    )
    unit.add_argument("--pieces", type=int, metavar="V", help="train V sentencepiece byte pairs")
    unit.add_argument("--dict", type=Path, metavar="FILE", help="dict.txt of a pretraining's data-bin")
    parser.add_argument("--model", type=Path, metavar="FILE", help="with --dict: the pretraining's spm.model")
    parser.add_argument(
        "--by",
        choices=("cluster", "frequency", "random"),
        default="cluster",
        help="which labels share a group (default: %(default)s, by the words of their documents)",
    )
    parser.add_argument("--lengths", metavar="G,L", help="groups, and labels of each (default: planned)")
    parser.add_argument("--seed", type=int, default=1, help="of the codebook (default: %(default)s)")
    parser.add_argument(
        "--propensity",
        default="0.55,1.5",
        metavar="A,B",
        help="the data set's, for PSP@k (default: %(default)s)",
    )
    add_workers(parser, 1)
    args = parser.parse_args(argv)
    return run_script("prepare_multilabel.py", args.out, lambda: prepare(args))


if __name__ == "__main__":
    sys.exit(main())
