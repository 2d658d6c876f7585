"""`mhe plan`: what every head would cost for a vocabulary, and which one to take."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from mhe_fairseq.cli.data import read_dictionary
from mhe_fairseq.cli.frequencies import read_counts, tokens_of_text
from mhe_fairseq.cli.pairs import add_languages
from mhe_fairseq.cli.plan_gpu import GpuPlan, add_arguments, machine_of, plan_gpu
from mhe_fairseq.cli.plan_heads import HeadPlan, plan_heads
from mhe_fairseq.cli.plan_report import Report, print_report, short
from mhe_fairseq.cli.prototypes import add_prototypes_arg, check_prototypes
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
        help="what each head costs for a dictionary, and which one to take",
        description="Print what each head costs for a dictionary: lengths, parameters, multiply-adds and "
        "bytes a token in training and in beam search; for a GPU, calculated: memory traffic, launches and "
        "times. Recommend a head.",
    )
    parser.add_argument(
        "--dict", required=True, metavar="DICT", help="dictionary of the target side, dict.LANG.txt"
    )
    parser.add_argument(
        "--langs",
        metavar="AA,...",
        help="languages whose tokens --task mhe_translation_multi_simple_epoch adds to the dictionary",
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
        "without FILE, require those in the dictionary (default: those, or Zipf's law where it has none)",
    )
    parser.add_argument(
        "--batch-tokens", type=int, default=4096, metavar="N", help="target tokens in a batch (default 4096)"
    )
    parser.add_argument("--beam", type=int, default=5, metavar="B", help="width of beam search (default 5)")
    add_prototypes_arg(parser)
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan.

    Raises:
        MHEError: bad dictionary, dimensions, lengths or counts.
    """
    for name in ("dim", "batch_tokens", "beam", "sentences"):
        if getattr(args, name) < 1:
            raise MHEError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    prototypes = check_prototypes(args)
    machine = machine_of(args)
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    dictionary = read_dictionary(Path(args.dict))
    counts, source = read_counts(dictionary, args)
    if args.langs:
        add_languages(dictionary, args.langs.split(","))
        # How often a language is asked for is in no dictionary.
        counts = torch.cat([counts, counts.new_zeros(len(dictionary) - len(counts))])
    vocab_size = len(dictionary)
    lengths = plan_lengths(vocab_size) if lengths is None else parse_lengths(lengths, vocab_size)
    if len(lengths) not in (2, 3):
        suggestion = ",".join(map(str, plan_lengths(vocab_size)))
        raise MHEError(
            f"a plan compares heads of two or three lengths, such as {suggestion}; got {args.lengths}"
        )
    heads = plan_heads(counts, lengths, args.dim, args.batch_tokens, args.beam, prototypes)
    choice, reason = recommend(heads, vocab_size, tokens_of_text(counts, source), _assign(args))
    gpu = None
    if args.device != "cpu":
        gpu = plan_gpu(
            heads, vocab_size, machine, args.dim, args.batch_tokens, args.sentences, args.beam, choice,
            prototypes,
        )  # fmt: skip
        if args.device == "cuda":
            choice, reason = gpu.recommended, gpu.reason
            if choice == "cascade":
                reason += " " + _codebook(heads, _assign(args))
    if args.json:
        print(json.dumps(_as_json(args, vocab_size, source, heads, choice, reason, gpu), indent=2))
        return 0
    print_report(
        Report(
            args.dict, vocab_size, args.dim, args.batch_tokens, args.beam, source, heads, choice, reason, gpu
        ),
        both=args.device is None,
    )
    return 0


def _as_json(
    args: argparse.Namespace, vocab_size: int, source: str, heads: list[HeadPlan], choice: str, reason: str,
    gpu: GpuPlan | None,
) -> dict[str, Any]:  # fmt: skip
    """Every number; ``gpu`` of each head and of the plan, unless --device is cpu."""
    answer = {
        "dictionary": args.dict,
        "vocab_size": vocab_size,
        "dim": args.dim,
        "batch_tokens": args.batch_tokens,
        "beam": args.beam,
        "group_prototypes": args.group_prototypes,
        "frequencies": source,
        "heads": [
            asdict(head) | ({} if gpu is None else {"gpu": asdict(gpu.costs[head.head])}) for head in heads
        ],
        "recommended": choice,
        "reason": reason,
    }
    return answer if gpu is None else answer | {"gpu": gpu.as_dict()}


def recommend(
    heads: list[HeadPlan], vocab_size: int, text_tokens: int | None, assign: str
) -> tuple[str, str]:
    """Which head to take, and why.

    Args:
        heads: from ``plan_heads``.
        vocab_size: V.
        text_tokens: tokens of the text, where the counts tell.
        assign: the command that makes the codebook, without the lengths.
    """
    by_name = {head.head: head for head in heads}
    softmax, cascade = by_name["softmax"], by_name["cascade"]
    training = softmax.train_macs / cascade.train_macs
    if vocab_size < SMALL_VOCABULARY:
        return "softmax", (
            f"{vocab_size:,} tokens are few (below {SMALL_VOCABULARY:,}): the whole output layer is "
            f"{short(softmax.parameters)} parameters, {short(softmax.train_macs)} multiply-adds a token, "
            f"about {softmax.search_macs / _layer_macs(softmax, vocab_size):.1f} times one decoder layer's, "
            f"so a head of digits would save little (the cascade, {training:.1f} times less in this layer) "
            "and its digits may cost quality."
        )
    reason = (
        f"A cascade over a learned codebook: {training:.0f} times fewer multiply-adds a token in training "
        f"than the softmax, about {softmax.search_macs / cascade.search_macs:.0f} times fewer in search. "
        "On 136,710 sentence pairs (docs/results.md#translation) it translated as well as the softmax after "
        "as many updates; the product is cheaper still but was several BLEU points behind. "
        + _codebook(heads, assign)
    )
    if text_tokens is not None and text_tokens < SMALL_TEXT:
        reason += (
            f" But the text is small ({text_tokens:,} tokens counted): on 8,401 pairs a cascade learned "
            "faster and overfitted sooner; compare both."
        )
    return "cascade", reason


def _assign(args: argparse.Namespace) -> str:
    languages = f" --lang-pairs PAIRS --langs {args.langs}" if args.langs else ""
    return f"mhe assign --data {Path(args.dict).parent}{languages}"


def _codebook(heads: list[HeadPlan], assign: str) -> str:
    """How a cascade gets its codebook."""
    lengths = ",".join(map(str, next(head.lengths for head in heads if head.kind == "cascade")))
    return (
        f"The codebook matters: `{assign} --lengths {lengths} -o codes`, then "
        "`--mhe-head cascade --mhe-codebook codes`."
    )


def _layer_macs(softmax: HeadPlan, vocab_size: int) -> int:
    """A decoder layer of this width: two attentions of 4 d^2, a feed-forward of 2 x 4 d^2."""
    dim = softmax.parameters // vocab_size
    return 16 * dim * dim
