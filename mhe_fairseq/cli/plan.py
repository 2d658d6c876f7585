"""`mhe plan`: what every head would cost for a vocabulary, and which one to take."""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mhe_fairseq.cli.assign import read_dictionary
from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths
from mhe_fairseq.coding.assign import frequency_slots
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.cascade import SMOOTHING_GROUPS
from mhe_fairseq.heads.group_sample import expected_share, inclusion_probabilities
from mhe_fairseq.heads.sampling import default_groups

if TYPE_CHECKING:
    from fairseq.data import Dictionary

MIXTURES = 8
#: Below this V x d is a small part of a model, and there is nothing to save.
SMALL_VOCABULARY = 4096

#: Below this many tokens of text the head that learns fastest may overfit first.
SMALL_TEXT = 2_000_000

#: A forward pass is one multiply-add a weight; the backward pass two, for features and for weights.
_TRAINING_PASSES = 3


@dataclass(frozen=True)
class HeadPlan:
    """One head's cost.

    Attributes:
        head: name.
        options: what to give to fairseq-train.
        lengths: of its digits; () for the softmax.
        holes: slots without a token.
        parameters: added to the model.
        train_macs: multiply-adds a token in a training step, forward and backward.
        train_bytes: of fp32 scores held for a token in a training step.
        search_macs: multiply-adds a hypothesis in a step of beam search, the 2 x beam best tokens found
            exactly.
        search_bytes: of fp32 scores made for it.
        groups: of tokens that are not empty; None where rows are not read by groups.
        touched_groups: expected number of groups whose rows a training batch reads and writes.
    """

    head: str
    options: str
    lengths: tuple[int, ...]
    holes: int
    parameters: int
    train_macs: int
    train_bytes: int
    search_macs: int
    search_bytes: int
    groups: int | None = None
    touched_groups: float | None = None


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
    counts, source = _counts(dictionary, args)
    heads = plan_heads(counts, lengths, args.dim, args.batch_tokens, args.beam)
    choice, reason = recommend(heads, vocab_size, _tokens_of_text(counts, source), Path(args.dict))
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


def plan_heads(
    counts: Tensor, lengths: tuple[int, ...], dim: int, batch_tokens: int, beam: int
) -> list[HeadPlan]:
    """Every head's cost.

    Args:
        counts: (V,) frequencies of the tokens, any scale.
        lengths: two or three.
        dim: d.
        batch_tokens: tokens in a batch.
        beam: width of the search, which asks for the 2 x beam best tokens.
    """
    vocab = len(counts)
    book = Codebook(lengths, frequency_slots(vocab, lengths))
    best = min(2 * beam, vocab)
    rows = sum(lengths)
    holes, shown = book.holes, ",".join(map(str, lengths))
    whole = f"--mhe-lengths {shown}"
    plans = [
        HeadPlan(
            head="softmax",
            options="--mhe-head softmax",
            lengths=(),
            holes=0,
            parameters=vocab * dim,
            train_macs=_TRAINING_PASSES * vocab * dim,
            train_bytes=4 * vocab,
            search_macs=vocab * dim,
            search_bytes=4 * vocab,
        )
    ]
    # The best pairs are among those with (i + 1)(j + 1) <= k.
    pairs = sum(best // (i + 1) for i in range(best))
    plans.append(
        HeadPlan(
            head="product",
            options=f"--mhe-head product {whole}",
            lengths=lengths,
            holes=holes,
            parameters=rows * (dim + 1),
            train_macs=_TRAINING_PASSES * rows * dim,
            train_bytes=4 * rows,
            search_macs=rows * dim,
            search_bytes=4 * (rows + (len(lengths) - 1) * pairs),
        )
    )
    mixed = MIXTURES * (rows + 1)
    # Rows of the first digit are opened best first; a few are enough for most tokens.
    table = min(lengths[0], max(8, best)) * (book.size // lengths[0])
    plans.append(
        HeadPlan(
            head=f"mixture of {MIXTURES}",
            options=f"--mhe-head product --mhe-mixtures {MIXTURES} {whole}",
            lengths=lengths,
            holes=holes,
            parameters=mixed * (dim + 1),
            train_macs=_TRAINING_PASSES * mixed * dim,
            train_bytes=4 * mixed,
            search_macs=mixed * dim + MIXTURES * table,
            search_bytes=4 * (mixed + table),
        )
    )
    leaves = torch.unique(book.slots // lengths[-1]).numel()
    # Every digit after the first has a table of rows for each prefix, its last one may be the embedding.
    inner = sum(math.prod(lengths[:level]) for level in range(2, len(lengths)))
    estimated = max(1, min(SMOOTHING_GROUPS, leaves - 1)) * sum(lengths[1:])
    opened = sum(lengths[:-1]) + min(best, leaves) * lengths[-1]
    touched = _touched(counts, book.slots // lengths[-1], batch_tokens)
    for tied in (False, True):
        plans.append(
            HeadPlan(
                head="cascade, tied" if tied else "cascade",
                options=f"--mhe-head cascade {whole}"
                + (" --share-decoder-input-output-embed" if tied else ""),
                lengths=lengths,
                holes=holes,
                parameters=lengths[0] * (dim + 1) + (inner + (0 if tied else book.size)) * dim,
                train_macs=_TRAINING_PASSES * (rows + estimated) * dim,
                train_bytes=4 * (rows + estimated),
                search_macs=opened * dim,
                search_bytes=4 * opened,
                groups=leaves,
                touched_groups=touched,
            )
        )
    if (sampling := _sampling(book, counts, dim, batch_tokens)) is not None:
        plans.append(sampling)
    return plans


def _sampling(book: Codebook, counts: Tensor, dim: int, batch_tokens: int) -> HeadPlan | None:
    """The plan of the sampling head, whose groups are the first digits; None with a single group."""
    vocab = len(book)
    group = torch.unique(book.slots // (book.size // book.lengths[0]), return_inverse=True)[1]
    sizes = torch.bincount(group)
    drawn = default_groups(book)
    if drawn is None:
        return None
    inclusion = inclusion_probabilities(expected_share(group, sizes), drawn)
    scored = (1 + drawn) * math.ceil(vocab / len(sizes))
    shown = ",".join(map(str, book.lengths))
    return HeadPlan(
        head=f"sampling of {drawn}",
        options=f"--mhe-head sampling --mhe-groups {drawn} --mhe-lengths {shown}",
        lengths=book.lengths,
        holes=book.holes,
        parameters=vocab * dim,
        train_macs=_TRAINING_PASSES * scored * dim,
        train_bytes=4 * scored,
        search_macs=vocab * dim,
        search_bytes=4 * vocab,
        groups=len(sizes),
        touched_groups=_touched(counts, group, batch_tokens, inclusion),
    )


def _touched(counts: Tensor, group: Tensor, batch_tokens: int, inclusion: Tensor | None = None) -> float:
    """Expected number of groups with a token among ``batch_tokens`` drawn by frequency, or sampled."""
    _, group = torch.unique(group, return_inverse=True)
    share = counts.double() / counts.sum().clamp(min=1)
    mass = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, share)
    missed = (1.0 - mass.clamp(max=1.0)) ** batch_tokens
    if inclusion is not None:
        missed = missed * (1.0 - inclusion)
    return round(float((1.0 - missed).sum()), 1)


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
        "In `make compare` (8,401 sentence pairs) it translated as well as the softmax; the product is "
        "cheaper still but was several BLEU points behind. "
        f"The codebook matters: {book}, then `--mhe-head cascade --mhe-codebook codes`."
    )
    if text_tokens is not None and text_tokens < SMALL_TEXT:
        reason += (
            f" But the text is small ({text_tokens:,} tokens counted): on those 8,401 pairs the cascade "
            "learned faster, then overfitted sooner, and its validation nll ended above the softmax's; "
            "compare both."
        )
    return "cascade", reason


def _layer_macs(softmax: HeadPlan, vocab_size: int) -> int:
    """A decoder layer of this width: two attentions of 4 d^2, a feed-forward of 2 x 4 d^2."""
    dim = softmax.parameters // vocab_size
    return 16 * dim * dim


# ---- frequencies


def _counts(dictionary: Dictionary, args: argparse.Namespace) -> tuple[Tensor, str]:
    """(V,) float64 frequencies of the tokens, and in words where they are from."""
    if args.counts:
        counts = _counts_of_file(dictionary, Path(args.counts), Path(args.dict))
        return counts, args.counts
    counts = torch.tensor(dictionary.count, dtype=torch.float64)
    own = counts[dictionary.nspecial :]
    if bool((own < 0).any()):
        bad = int((own < 0).nonzero()[0]) + dictionary.nspecial
        raise MHEError(
            f"dictionary {args.dict} counts {dictionary[bad]!r} {dictionary.count[bad]} times; "
            "a count is 0 or more"
        )
    if own.unique().numel() > 1:
        return counts, args.dict
    if args.counts is not None:
        raise MHEError(
            f"--counts asks for frequencies and the dictionary {args.dict} has none: all its counts are "
            f"{int(own[0])}; give a file of `symbol count` lines, --counts FILE"
        )
    return 1.0 / (torch.arange(len(counts), dtype=torch.float64) + 1.0), "Zipf's law"


def _counts_of_file(dictionary: Dictionary, path: Path, dictionary_path: Path) -> Tensor:
    """(V,) counts from a file of `symbol count` lines in any order, each symbol of the dictionary once."""
    if not path.is_file():
        raise MHEError(f"there is no counts file {path}; it needs lines of `symbol count`")
    found: dict[str, int] = {}
    # Lines end with \n only: symbols may hold other characters that Python takes for line ends.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            symbol, _, field = line.rstrip("\r\n").rpartition(" ")
            if not symbol or not field.isdecimal():
                raise MHEError(
                    f"line {number} of the counts file {path} is {line.rstrip()!r}, not `symbol count`"
                )
            if symbol in found:
                raise MHEError(f"the counts file {path} has {symbol!r} twice (again in line {number})")
            found[symbol] = int(field)
    symbols = dictionary.symbols
    wanted = symbols[dictionary.nspecial :]
    strange = sorted(set(found) - set(symbols))
    missing = sorted(set(wanted) - set(found))
    if strange or missing:
        example = f"{strange[0]!r} is not in the dictionary" if strange else f"{missing[0]!r} has no count"
        raise MHEError(
            f"the counts file {path} does not match the dictionary {dictionary_path}: {len(found)} symbols "
            f"against {len(wanted)}, {len(strange)} of them unknown and {len(missing)} missing; {example}"
        )
    if not any(found.values()):
        raise MHEError(f"all counts in {path} are 0; they must come from a text")
    return torch.tensor([found.get(symbol, 0) for symbol in symbols], dtype=torch.float64)


def _tokens_of_text(counts: Tensor, source: str) -> int | None:
    return None if source == "Zipf's law" else int(counts.sum())


# ---- output


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
