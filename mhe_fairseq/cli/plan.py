"""`mhe plan`: what every head would cost for a vocabulary, and which one to take."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.cli.frequencies import read_counts, tokens_of_text
from mhe_fairseq.cli.plan_heads import HeadPlan, plan_heads
from mhe_fairseq.coding import parse_lengths, plan_lengths
from mhe_fairseq.errors import MHEError

#: Below this V x d is a small part of a model, and there is nothing to save.
SMALL_VOCABULARY = 4096

#: Below this many tokens of text the head that learns fastest may overfit first.
SMALL_TEXT = 2_000_000


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="what every head would cost for a vocabulary, and which one to take",
        description="Print a table of every head for a dictionary: lengths, parameters, multiply-adds and "
        "bytes a token in training and in beam search; and recommend one.",
    )
    parser.add_argument(
        "--dict", required=True, metavar="DICT", help="dictionary of the target side, dict.LANG.txt"
    )
    parser.add_argument("--dim", type=int, required=True, metavar="D", help="width of the decoder's features")
    parser.add_argument(
        "--lengths", metavar="L,L", help="such as 128,256 (default: planned for the vocabulary)"
    )
    parser.add_argument(
        "--counts",
        nargs="?",
        const="",
        metavar="FILE",
        help="take the tokens' frequencies from FILE, lines of `symbol count` for the dictionary's symbols; "
        "without FILE, insist on those in the dictionary (default: those, or Zipf's law where it has none)",
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, metavar="N", help="target tokens in a batch (default 4096)"
    )
    parser.add_argument("--beam", type=int, default=5, metavar="B", help="width of beam search (default 5)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        MHEError: bad dictionary, dimensions, lengths or counts.
    """
    for name, value in (("--dim", args.dim), ("--batch-tokens", args.batch_tokens), ("--beam", args.beam)):
        if value < 1:
            raise MHEError(f"{name} must be at least 1, got {value}")
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    dictionary = read_dictionary(Path(args.dict))
    vocab_size = len(dictionary)
    lengths = plan_lengths(vocab_size) if lengths is None else parse_lengths(lengths, vocab_size)
    if len(lengths) not in (2, 3):
        suggestion = ",".join(map(str, plan_lengths(vocab_size)))
        raise MHEError(
            f"a plan compares heads of two or three lengths, such as {suggestion}; got {args.lengths}"
        )
    counts, source = read_counts(dictionary, args)
    heads = plan_heads(counts, lengths, args.dim, args.batch_tokens, args.beam)
    choice, reason = recommend(heads, vocab_size, tokens_of_text(counts, source), Path(args.dict))
    if args.json:
        answer = {
            "dictionary": args.dict,
            "vocab_size": vocab_size,
            "dim": args.dim,
            "batch_tokens": args.batch_tokens,
            "beam": args.beam,
            "frequencies": source,
            "heads": [asdict(head) for head in heads],
            "recommended": choice,
            "reason": reason,
        }
        print(json.dumps(answer, indent=2))
        return 0
    _print(args, vocab_size, source, heads, choice, reason)
    return 0


def recommend(
    heads: list[HeadPlan], vocab_size: int, text_tokens: int | None, dictionary: Path
) -> tuple[str, str]:
    """Which head to take, and why.

    Args:
        heads: from ``plan_heads``.
        vocab_size: V.
        text_tokens: tokens of the text, where the counts tell.
        dictionary: where the next command finds the data.
    """
    by_name = {head.head: head for head in heads}
    softmax, cascade = by_name["softmax"], by_name["cascade"]
    training = softmax.train_macs / cascade.train_macs
    if vocab_size < SMALL_VOCABULARY:
        return "softmax", (
            f"{vocab_size:,} tokens are few (below {SMALL_VOCABULARY:,}): the whole output layer is "
            f"{_short(softmax.parameters)} parameters, {_short(softmax.train_macs)} multiply-adds a token, "
            f"about {softmax.search_macs / _layer_macs(softmax, vocab_size):.1f} times one decoder layer's, "
            f"so a head of digits would save little (the cascade, {training:.1f} times less in this layer) "
            "and its digits may cost quality."
        )
    book = f"`mhe assign --data {dictionary.parent} --lengths {','.join(map(str, cascade.lengths))} -o codes`"
    reason = (
        f"A cascade over a learned codebook: {training:.0f} times fewer multiply-adds a token in training "
        f"than the softmax, about {softmax.search_macs / cascade.search_macs:.0f} times fewer in search. "
        "On 136,710 sentence pairs (docs/results.md) it translated as well as the softmax after as many "
        "updates; the product is cheaper still but was several BLEU points behind. "
        f"The codebook matters: {book}, then `--mhe-head cascade --mhe-codebook codes`."
    )
    if text_tokens is not None and text_tokens < SMALL_TEXT:
        reason += (
            f" But the text is small ({text_tokens:,} tokens counted): on 8,401 pairs a cascade learned "
            "faster and overfitted sooner; compare both."
        )
    return "cascade", reason


def _layer_macs(softmax: HeadPlan, vocab_size: int) -> int:
    """A decoder layer of this width: two attentions of 4 d^2, a feed-forward of 2 x 4 d^2."""
    dim = softmax.parameters // vocab_size
    return 16 * dim * dim


def _print(
    args: argparse.Namespace, vocab_size: int, source: str, heads: list[HeadPlan], choice: str, reason: str
) -> None:
    # Not a terminal: a fixed width, so that no column is folded in a log.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 118))
    table = Table(title=Text(f"{args.dict}: {vocab_size:,} tokens, d = {args.dim:,}"))
    table.add_column("head")
    for column in ("lengths", "holes", "parameters"):
        table.add_column(column, justify="right")
    for column in (
        "training\nmult-adds",
        "\nbytes",
        "search\nmult-adds",
        "\nbytes",
        "groups touched\nby a batch",
    ):
        table.add_column(column, justify="right")
    for head in heads:
        touched = "-" if head.groups is None else f"{head.touched_groups:,.0f} of {head.groups:,}"
        table.add_row(
            f"{head.head} *" if head.head == choice else head.head,
            " x ".join(map(str, head.lengths)) or "-",
            f"{head.holes:,}" if head.lengths else "-",
            _short(head.parameters),
            _short(head.train_macs),
            _short(head.train_bytes),
            _short(head.search_macs),
            _short(head.search_bytes),
            touched,
        )
    console.print(table)
    console.print(
        "Of the output layer, a token. Training: forward and backward multiply-adds, fp32 scores held. "
        f"Search: the {2 * args.beam} best tokens of a hypothesis, exactly; the cascade is taken to open as "
        "many groups, and the mixture as many rows; a sure model needs fewer. Groups touched: by the gold "
        f"tokens of a batch of {args.batch_tokens:,} (and those sampled), in dictionary order, frequencies "
        f"from {source}.",
        markup=False,
    )
    console.print()
    console.print(Text.assemble(("* Recommended: ", "bold"), f"{choice}. ", reason))


def _short(number: int) -> str:
    """1234567 -> 1.23M."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if number < 999.5 * scale else f"{number / scale:,.0f}{unit}"
    return str(number)
