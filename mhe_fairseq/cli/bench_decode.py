"""`mhe bench decode`: beam search of every head on one transformer, against the softmax."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from rich.table import Table
from rich.text import Text

from mhe_fairseq.bench.machine import Machine, find_device
from mhe_fairseq.bench.report import machine_dict, make_console
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.bench_common import add_output_args, check_output_args, choose_heads, write_json
from mhe_fairseq.cli.prototypes import add_prototypes_arg, check_prototypes
from mhe_fairseq.errors import MHEError
from mhe_fairseq.version import __version__

if TYPE_CHECKING:
    from mhe_fairseq.bench.decode import DecodeResult, DecodeSettings

#: (V, head) -> how many times as many tokens a second as with the softmax the project aims at.
BARS = {
    (32_768, "product"): 2.0,
    (32_768, "cascade"): 1.8,
    (262_144, "product"): 6.0,
    (262_144, "cascade"): 4.0,
}

#: ... and what share of the speed without an output layer.
LIMIT_BAR = 0.85


@dataclass(frozen=True)
class Sizes:
    """Of a run; named as the flags."""

    vocab: str
    dim: int
    layers: int
    sentences: int
    length: int
    beam: int
    batch: int
    repeats: int


#: Unless told: of the real measurement, and of one that only shows that it runs.
FULL = Sizes("32768,262144", dim=512, layers=6, sentences=200, length=25, beam=5, batch=200, repeats=3)
QUICK = Sizes("128,256", dim=16, layers=1, sentences=6, length=4, beam=2, batch=4, repeats=2)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe bench decode`."""
    parser = subparsers.add_parser(
        "decode",
        help="beam search: tokens per second with each head",
        description="Translate random sentences with one transformer and each head in turn, the same number "
        "of tokens each: with the search of --task mhe_translation, with the softmax and fairseq's search, "
        "and without an output layer, which is the limit. Takes some minutes on two cores; nothing else "
        "should use them meanwhile.",
    )
    for name, metavar, text in (
        ("vocab", "V,V,...", "vocabularies"),
        ("dim", "D", "width of the transformer"),
        ("layers", "L", "of the encoder, and of the decoder"),
        ("sentences", "N", "translated in a run"),
        ("length", "T", "tokens of a sentence and of its translation"),
        ("beam", "B", "of the search"),
        ("batch", "N", "sentences searched at a time"),
        ("repeats", "R", "rounds"),
    ):
        default = getattr(FULL, name)
        kind = str if name == "vocab" else int
        parser.add_argument(f"--{name}", type=kind, metavar=metavar, help=f"{text} (default {default})")
    parser.add_argument(
        "--heads",
        metavar="HEAD,...",
        help="of softmax, product, mixture, cascade, none (default: all; none: no output layer)",
    )
    add_prototypes_arg(parser)
    add_output_args(parser)
    parser.set_defaults(run=run_decode)


def run_decode(args: argparse.Namespace) -> int:
    """Measure and print. The exit status does not depend on what is measured.

    Raises:
        MHEError: bad sizes, heads, device or output.
    """
    for name, size in asdict(QUICK if args.quick else FULL).items():
        if getattr(args, name) is None:
            setattr(args, name, size)
        if name != "vocab" and getattr(args, name) < 1:
            raise MHEError(f"--{name} must be at least 1, got {getattr(args, name)}")
    vocabs = _vocabularies(args.vocab)
    if args.dim > 64 and args.dim % 64:
        raise MHEError(f"--dim {args.dim} is not a multiple of 64, the width of an attention head")
    prototypes = check_prototypes(args)
    check_output_args(args)
    device = find_device(args.device)
    # Imports fairseq, which takes seconds: bad input is told before.
    from mhe_fairseq.bench.decode import HEADS, DecodeSettings, check_vocabulary, measure_decode

    heads = choose_heads(args.heads, HEADS)
    settings = DecodeSettings(
        args.dim, args.layers, args.sentences, args.length, args.beam, args.batch, args.seed, device,
        prototypes, args.cpu_time,
    )  # fmt: skip
    for vocab in vocabs:
        check_vocabulary(vocab, settings)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads if args.threads is None else args.threads)
        machine = Machine.here(device)
        console = None if args.json == "-" else make_console()
        if console:
            of_processor = "; times are of the processor" if settings.cpu_time else ""
            console.print(f"{machine}; seed {settings.seed}{of_processor}", markup=False)
        results: list[DecodeResult] = []
        for vocab in vocabs:
            with Bars(refresh=False) as bar:
                progress = partial(bar.update, f"V = {vocab:,}", total=args.repeats)
                found = measure_decode(vocab, heads, args.repeats, settings, progress)
            results += found
            if console:
                console.print(_table(found, settings, args.repeats))
        if console:
            console.print(_LEGEND, markup=False)
        if args.json is not None:
            write_json(args.json, json.dumps(_as_dict(settings, machine, results), indent=2))
    finally:
        torch.set_num_threads(threads)
    return 0


def _vocabularies(text: str) -> list[int]:
    try:
        vocabs = [int(part) for part in text.split(",")]
    except ValueError:
        raise MHEError(f"--vocab must be whole numbers separated by commas, got {text!r}") from None
    if min(vocabs) < 1:
        raise MHEError(f"every vocabulary must be at least 1, got {min(vocabs)}")
    return vocabs


_LEGEND = (
    "Medians over rounds, all heads on the same transformer with random weights, in turns. Every translation "
    "has the same length. Weights of a head are scaled so that the next token has an entropy of 2 nats, as "
    "after training. Bars are the project's own aims."
)


def _table(results: list[DecodeResult], settings: DecodeSettings, rounds: int) -> Table:
    from mhe_fairseq.bench.decode import HEADS

    vocab = results[0].vocab_size
    table = Table(
        title=Text(
            f"V = {vocab:,}, {settings.layers}+{settings.layers} layers, d = {settings.dim}: "
            f"{rounds} round{'s' * (rounds > 1)} of {settings.sentences} sentences, "
            f"{settings.batch} at a time, beam {settings.beam}"
        )
    )
    table.add_column("head")
    for column in (
        "seconds",
        "tokens/s",
        "times the\nsoftmax's",
        "bar:\nat least",
        "share of\nthe limit",
        "bar:\nat least",
    ):
        table.add_column(column, justify="right")
    for result in results:
        bar = BARS.get((vocab, result.head)) if settings.dim == 512 and settings.layers == 6 else None
        limit = LIMIT_BAR if bar is not None else None
        table.add_row(
            HEADS[result.head],
            f"{result.samples.median:.2f}",
            f"{result.tokens_per_second:,.0f}",
            "-" if result.ratio is None else f"{result.ratio:.2f}x",
            _bar(result.ratio, bar),
            "-" if result.of_limit is None else f"{result.of_limit:.2f}",
            _bar(result.of_limit, limit),
        )
    return table


def _bar(value: float | None, bar: float | None) -> str:
    if value is None or bar is None:
        return "-"
    return f"{bar:g} {'met' if value >= bar else 'missed'}"


def _as_dict(settings: DecodeSettings, machine: Machine, results: list[DecodeResult]) -> dict[str, Any]:
    shape = {name: value for name, value in asdict(settings).items() if name not in ("device", "seed")}
    return {
        "benchmark": "decode",
        "version": __version__,
        "seed": settings.seed,
        "machine": machine_dict(machine),
        "device": settings.device.type,
        **shape,
        "heads": [
            {
                "head": result.head,
                "vocab_size": result.vocab_size,
                "tokens": result.tokens,
                "seconds": list(result.samples.seconds),
                "tokens_per_second": result.tokens_per_second,
                "ratio": result.ratio,
                "of_limit": result.of_limit,
            }
            for result in results
        ],
    }
