"""`mhe assign`: make a codebook, the slot of every token, from binarised data or a trained embedding."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mhe_fairseq.cli.assign_labels import LabelText
from mhe_fairseq.cli.assign_report import Assigned, report
from mhe_fairseq.cli.assign_text import ManyTexts, OneText, Text, add_language_args
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.embedding import read_embedding
from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths, symbols_fingerprint
from mhe_fairseq.coding.assign import (
    Ints,
    cluster_slots,
    embedding_vectors,
    frequency_slots,
    random_slots,
)
from mhe_fairseq.coding.files import is_written_to
from mhe_fairseq.coding.plan import plan_label_lengths
from mhe_fairseq.coding.shortlist import plan_shortlist, shortlist_slots
from mhe_fairseq.errors import MHEError

METHODS = ("cluster", "frequency", "random")


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe assign`."""
    parser = subparsers.add_parser(
        "assign",
        help="make a codebook from binarised data or a trained embedding",
        description="Give every token of a dictionary a slot in a grid of digits, and write the codebook "
        "that --mhe-codebook takes.",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="BIN",
        help="directory written by fairseq-preprocess; several separated by ':'",
    )
    parser.add_argument(
        "--lengths", metavar="L,L", help="such as 128,256 (default: planned for the vocabulary)"
    )
    parser.add_argument(
        "--shortlist",
        type=int,
        metavar="S",
        help="give the S most frequent tokens of the text a first digit of their own, so that a product "
        "head is a full softmax among them (lengths are planned for it, too)",
    )
    parser.add_argument(
        "--by",
        choices=METHODS,
        default="cluster",
        help="cluster: tokens used alike share their first digits (default); frequency: dictionary order; "
        "random",
    )
    parser.add_argument("--seed", type=int, default=1, help="for cluster and random (default 1)")
    parser.add_argument(
        "--from-checkpoint",
        metavar="CKPT",
        help="cluster the embedding of this fairseq checkpoint, not the text",
    )
    parser.add_argument(
        "--target-lang",
        metavar="LANG",
        help="language to make a codebook for (default: the target of the only pair)",
    )
    parser.add_argument(
        "--target-only",
        action="store_true",
        help="with a joined dictionary: cluster by the target text alone, for models that do not share the "
        "embeddings of the two sides (default: by the text of both)",
    )
    parser.add_argument(
        "--add-symbol",
        action="append",
        default=[],
        metavar="SYMBOL",
        help="a symbol that the task adds to the dictionary; masked_lm adds '<mask>'; may be repeated",
    )
    parser.add_argument(
        "--labels",
        action="store_true",
        help="a codebook of the labels of documents, for --task mhe_multilabel; clusters are of the words of "
        "each label's documents (TF-IDF)",
    )
    add_language_args(parser)
    parser.add_argument(
        "--contexts",
        type=int,
        default=4096,
        metavar="C",
        help="count neighbours among the C most frequent tokens (default 4096)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="codebook file to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the codebook, write it, say what it is.

    Raises:
        MHEError: bad data, dictionary, lengths, checkpoint or output path; the output is not touched.
    """
    started = time.monotonic()
    output = Path(args.output)
    check_output(output, "codes")
    _check_replaced(output)
    if args.contexts < 1:
        raise MHEError(f"--contexts is a number of tokens, at least 1; got {args.contexts}")
    if not 0 <= args.seed < 2**63:
        raise MHEError(f"--seed must be a whole number from 0 to 2**63 - 1, got {args.seed}")
    if args.target_only and (args.from_checkpoint is not None or args.by != "cluster"):
        raise MHEError("--target-only chooses the text to cluster, and no text is clustered; leave it out")
    if args.from_checkpoint is not None and args.by != "cluster":
        raise MHEError(f"--from-checkpoint clusters an embedding; it cannot be combined with --by {args.by}")
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    text: Text
    if args.labels:
        text = LabelText.of(args)
    else:
        text = OneText.of(args) if args.lang_pairs is None else ManyTexts.of(args)
    dictionary = text.dictionary
    vocab_size = len(dictionary)
    planned = plan_label_lengths(vocab_size) if args.labels else plan_lengths(vocab_size)
    if lengths is not None:
        lengths = parse_lengths(lengths, vocab_size)
    elif args.shortlist is not None:
        lengths = plan_shortlist(vocab_size, args.shortlist)
    else:
        lengths = planned
    if args.by == "cluster" and len(lengths) < 2:
        raise MHEError(
            "--by cluster makes clusters first digits, so it needs at least two lengths such as "
            f"{','.join(map(str, planned))}; got {lengths[0]}"
        )
    with Bars() as bars:
        made = assign_slots(args, text, lengths, vocab_size, bars)
    book = Codebook(lengths, made.slots, dictionary=symbols_fingerprint(dictionary.symbols))
    write_whole(output, book.save)
    report(book, dictionary.symbols, made, args, time.monotonic() - started)
    return 0


def _check_replaced(output: Path) -> None:
    """A codebook may be made again, and anything else that lies there is not this command's.

    Raises:
        MHEError: a file of another kind.
    """
    if not output.is_file() or is_written_to(output):
        return
    try:
        Codebook.load(output)
    except MHEError:
        raise MHEError(
            f"the output {output} is a file of {output.stat().st_size:,} bytes that is no codebook; give "
            "another one, or remove it"
        ) from None


def assign_slots(
    args: argparse.Namespace, text: Text, lengths: tuple[int, ...], vocab_size: int, bars: Bars
) -> Assigned:
    """Slots of all tokens, as the flags ask.

    Args:
        args: the flags of `mhe assign`.
        text: to read.
        lengths: of the codebook.
        vocab_size: V.
        bars: to draw on.

    Raises:
        MHEError: data, or a checkpoint, that cannot be read or does not fit.
    """
    counts, vectors, weights = None, None, None
    reads_text = args.by == "cluster" and args.from_checkpoint is None
    if reads_text or args.shortlist is not None:
        counts = weights = text.count(vocab_size, bars.update)
        if not counts.any():
            what = "clusters need text" if reads_text else "a shortlist needs text"
            raise MHEError(f"the training text in {args.data} is empty; {what}")
    if reads_text:
        weights, vectors, words = text.neighbours(vocab_size, args.contexts, args.seed, bars.update)
        source = f"clusters of {words}, seed {args.seed}"
    elif args.from_checkpoint is not None:
        vectors = embedding_vectors(read_embedding(Path(args.from_checkpoint), vocab_size), seed=args.seed)
        source = f"clusters of the embedding in {args.from_checkpoint}, seed {args.seed}"
    else:
        source = "dictionary order" if args.by == "frequency" else f"random order, seed {args.seed}"

    def layout(tokens: Ints, lengths: tuple[int, ...]) -> Tensor:
        if args.by == "frequency":
            return frequency_slots(len(tokens), lengths)
        if args.by == "random":
            return random_slots(len(tokens), lengths, args.seed)
        assert vectors is not None
        return cluster_slots(
            vectors[tokens], lengths, None if weights is None else weights[tokens], bars.update
        )

    if args.shortlist is None:
        return Assigned(layout(np.arange(vocab_size), lengths), counts, source, text.by_language)
    assert counts is not None
    source = f"the {args.shortlist:,} most frequent tokens by themselves, then {source}"
    slots = shortlist_slots(counts, lengths, args.shortlist, layout)
    return Assigned(slots, counts, source, text.by_language)
