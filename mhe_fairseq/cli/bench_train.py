"""`mhe bench train`: time and memory of a training step of every head, against the dense softmax."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch

from mhe_fairseq.bench import report
from mhe_fairseq.bench.machine import Machine, find_device
from mhe_fairseq.bench.steps import HEADS
from mhe_fairseq.bench.train import (
    GROWTH_HEADS,
    GROWTH_ROUNDS,
    LARGE_HEADS,
    LARGE_ROUNDS,
    GrowthResult,
    Settings,
    ShapeResult,
    check_growth_memory,
    check_shape_memory,
    measure_growth,
    measure_shape,
)
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.bench_common import add_output_args, check_output_args, choose_heads, write_json
from mhe_fairseq.cli.prototypes import add_prototypes_arg, check_prototypes
from mhe_fairseq.coding import Codebook, plan_lengths
from mhe_fairseq.errors import MHEError
from mhe_fairseq.version import __version__


@dataclass(frozen=True)
class Sizes:
    """Of a run; named as the flags."""

    vocab: int
    dim: int
    tokens: int
    repeats: int
    large_vocab: int
    growth: tuple[int, ...]


#: Unless told: of the real measurement, and of one that only shows that it runs.
FULL = Sizes(
    vocab=32_768,
    dim=512,
    tokens=2048,
    repeats=7,
    large_vocab=262_144,
    growth=(8192, 32_768, 131_072, 1_048_576),
)
QUICK = Sizes(vocab=512, dim=16, tokens=64, repeats=2, large_vocab=1024, growth=(256, 1024, 4096))


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe bench train`."""
    parser = subparsers.add_parser(
        "train",
        help="a training step: time, memory, and growth with the vocabulary",
        description="Measure forward and backward of each head and of the dense softmax, taking turns, and "
        "print ratios of medians; a few heads again with a large vocabulary; and how time grows with the "
        "vocabulary. Takes some minutes on two cores; nothing else should use them meanwhile.",
    )
    heads = ", ".join(name for name in HEADS if name != "softmax")
    for flag, metavar, text in (
        ("--vocab", "V", "tokens in the vocabulary"),
        ("--dim", "D", "width of the features"),
        ("--tokens", "N", "target tokens in a batch"),
        ("--repeats", "R", "rounds"),
    ):
        default = getattr(FULL, flag[2:])
        parser.add_argument(flag, type=int, metavar=metavar, help=f"{text} (default {default})")
    parser.add_argument(
        "--heads", metavar="HEAD,...", help=f"of {heads} (default: all; the softmax is always measured)"
    )
    parser.add_argument(
        "--smoothing",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="label smoothing in the loss (default: yes)",
    )
    parser.add_argument(
        "--codebook",
        metavar="FILE",
        help="from `mhe assign`, for the vocabulary of --vocab (default: dictionary order)",
    )
    parser.add_argument(
        "--large-vocab",
        type=int,
        metavar="V",
        help=f"the large vocabulary, for {', '.join(LARGE_HEADS)}; 0 leaves this part out "
        f"(default {FULL.large_vocab})",
    )
    parser.add_argument(
        "--growth",
        metavar="V,V,...",
        help=f"vocabularies to measure growth over, for {', '.join(GROWTH_HEADS)}; 0 leaves this part out "
        f"(default {','.join(map(str, FULL.growth))})",
    )
    add_prototypes_arg(parser)
    add_output_args(parser)
    parser.set_defaults(run=run_train)


class _Parts(NamedTuple):
    """What to measure: heads and rounds at each vocabulary, and for growth over several."""

    shapes: list[tuple[Codebook, list[str], int]]
    growth: tuple[tuple[int, ...], list[str], int] | None


def run_train(args: argparse.Namespace) -> int:
    """Measure and print. The exit status does not depend on what is measured.

    Raises:
        MHEError: bad sizes, heads, codebook, device or output; too little memory.
    """
    args.growth = None if args.growth is None else _parse_growth(args.growth)
    for name, size in asdict(QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, size)
    heads = _check(args)
    settings = Settings(
        args.dim, args.tokens, args.smoothing, args.seed, find_device(args.device), check_prototypes(args),
        args.cpu_time,
    )  # fmt: skip
    parts = _parts(args, heads, settings)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads if args.threads is None else args.threads)
        _measure(parts, settings, args.json)
    finally:
        torch.set_num_threads(threads)
    return 0


def _measure(parts: _Parts, settings: Settings, json_path: str | None) -> None:
    machine = Machine.here(settings.device)
    tables = None if json_path == "-" else report.make_console()
    if tables:
        report.print_settings(tables, settings, machine)
    shapes: list[ShapeResult] = []
    for codebook, heads, rounds in parts.shapes:
        with Bars(refresh=False) as bar:
            shapes.append(measure_shape(codebook, heads, rounds, settings, bar.update))
        if tables:
            report.print_shape(tables, shapes[-1], settings)
    growth: list[GrowthResult] = []
    if parts.growth:
        vocabs, heads, rounds = parts.growth
        with Bars(refresh=False) as bar:
            growth = measure_growth(vocabs, heads, rounds, settings, bar.update)
        if tables:
            report.print_growth(tables, growth, rounds)
    if tables:
        report.print_legend(tables)
    if json_path is not None:
        answer = report.as_dict(settings, machine, shapes, growth, __version__)
        write_json(json_path, json.dumps(answer, indent=2))


# ---- input


def _check(args: argparse.Namespace) -> list[str]:
    """The heads to measure; refuse bad values before the work."""
    for name in ("vocab", "dim", "tokens", "repeats", "threads"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise MHEError(f"--{name} must be at least 1, got {value}")
    if args.large_vocab < 0:
        raise MHEError(f"--large-vocab is a number of tokens, 0 to leave it out; got {args.large_vocab}")
    check_output_args(args)
    return choose_heads(args.heads, HEADS)


def _parse_growth(text: str) -> tuple[int, ...]:
    """Vocabularies, rising; none for "0"."""
    try:
        vocabs = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise MHEError(
            f"--growth must be whole numbers separated by commas, such as 8192,65536; got {text!r}"
        ) from None
    if vocabs == [0]:
        return ()
    if vocabs[0] < 1:
        raise MHEError(f"every vocabulary of --growth must be at least 1, got {vocabs[0]}")
    if len(vocabs) < 2:
        raise MHEError(f"growth is seen over at least two different vocabularies; --growth has {text}")
    return tuple(vocabs)


def _parts(args: argparse.Namespace, heads: list[str], settings: Settings) -> _Parts:
    """All parts of the run; refuse before the first what memory will not do for."""
    check_shape_memory(args.vocab, heads, settings)
    shapes = [(_codebook(args), heads, args.repeats)]
    large = [name for name in heads if name in LARGE_HEADS]
    if args.large_vocab and large:
        check_shape_memory(args.large_vocab, large, settings)
        book = Codebook(plan_lengths(args.large_vocab), vocab_size=args.large_vocab)
        shapes.append((book, large, min(args.repeats, LARGE_ROUNDS)))
    growing = [name for name in heads if name in GROWTH_HEADS]
    if not (args.growth and growing):
        return _Parts(shapes, None)
    check_growth_memory(args.growth, growing, settings)
    return _Parts(shapes, (args.growth, growing, min(args.repeats, GROWTH_ROUNDS)))


def _codebook(args: argparse.Namespace) -> Codebook:
    if args.codebook is None:
        return Codebook(plan_lengths(args.vocab), vocab_size=args.vocab)
    book = Codebook.load(args.codebook)
    if len(book) != args.vocab:
        raise MHEError(
            f"codebook {args.codebook} is for {len(book)} tokens and --vocab is {args.vocab}; "
            f"give --vocab {len(book)}"
        )
    return book
