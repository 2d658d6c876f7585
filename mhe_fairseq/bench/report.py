"""What was measured, for people (tables) and for machines (JSON)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mhe_fairseq.bench.machine import Machine
from mhe_fairseq.bench.steps import HEADS, LABEL_SMOOTHING
from mhe_fairseq.bench.train import GrowthResult, HeadResult, Settings, ShapeResult

_MIB = 2**20

#: Wide enough that no column is folded in a log.
_WIDTH = 132


def make_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, _WIDTH))


def print_settings(console: Console, settings: Settings, machine: Machine) -> None:
    """What is measured, and on what."""
    smoothing = f"label smoothing {LABEL_SMOOTHING}" if settings.smoothing else "no label smoothing"
    _say(console, f"{machine}; seed {settings.seed}")
    _say(
        console,
        f"A step: forward and backward of an output layer, fp32, {smoothing}, d = {settings.dim:,}, "
        f"N = {settings.tokens:,} tokens; features standard normal, weights of standard deviation d^-0.5, "
        "targets by Zipf's law over the order of the dictionary, as in text. The softmax is fairseq's: "
        "F.linear, log_softmax, gather."
        + (f" Groups of cascades have {settings.prototypes} rows." if settings.prototypes > 1 else "")
        + (" Times are of the processor." if settings.cpu_time else ""),
    )


def print_shape(console: Console, result: ShapeResult, settings: Settings) -> None:
    """The table of one vocabulary."""
    book = result.codebook
    table = Table(
        title=Text(
            f"V = {len(book):,} ({' x '.join(map(str, book.lengths))}, codebook {book.fingerprint}), "
            f"d = {settings.dim:,}, N = {settings.tokens:,}: {_rounds(result.rounds)}"
        )
    )
    table.add_column("head")
    for column in (
        "ms a step",
        "times as\nfast",
        "in a round\nleast..most",
        "bar:\nat least",
        "extra\nMiB",
        "share of\nsoftmax's",
        "bar:\nat most",
        "gradients\nMiB",
        "parameters",
    ):
        table.add_column(column, justify="right")
    for head in result.heads:
        low, high = head.ratio_range
        table.add_row(
            HEADS[head.head],
            _number(1000 * head.samples.median),
            f"{_number(head.ratio)}x",
            f"{_number(low)}..{_number(high)}",
            _at_least(head.ratio, head.ratio_bar),
            _number(head.memory.extra / _MIB),
            f"{head.memory_share:.3f}",
            _at_most(head.memory_share, head.memory_bar),
            _number(head.memory.gradients / _MIB),
            f"{head.parameters:,}",
        )
    console.print(table)


def print_growth(console: Console, results: Sequence[GrowthResult], rounds: int) -> None:
    """The table of growth with the vocabulary."""
    table = Table(title=Text(f"Growth with V: ms, {_rounds(rounds)}"))
    table.add_column("")
    for vocab in results[0].vocabs:
        table.add_column(f"V = {vocab:,}", justify="right")
    for column in ("time ~ V^", "bar: at most"):
        table.add_column(column, justify="right")
    for result in results:
        table.add_row(
            HEADS[result.head],
            *(_number(1000 * step.median) for step in result.steps),
            f"{result.exponent:.2f}",
            _at_most(result.exponent, result.bar),
        )
    for result in results:
        table.add_row(
            f"{HEADS[result.head]}: Adam alone",
            *(_number(1000 * step.median) for step in result.optimizer),
            f"{result.optimizer_exponent:.2f}",
            "-",
        )
    console.print(table)


def print_legend(console: Console) -> None:
    """How to read the tables."""
    _say(
        console,
        "Medians over rounds; in each, every layer had its turn, warmed up, a few steps in a row. Times as "
        "fast: the softmax's median time divided by a head's. Extra memory is that of a step at its peak "
        "beside parameters, inputs and the parameters' gradients, which are a column of their own (a tied "
        "cascade's include the embedding's). The optimiser step (fused Adam on all parameters of the head) "
        "is not part of a step's time. Bars are the project's own aims.",
    )


def as_dict(
    settings: Settings,
    machine: Machine,
    shapes: Sequence[ShapeResult],
    growth: Sequence[GrowthResult],
    version: str,
) -> dict[str, Any]:
    """The whole run. Times are in milliseconds, memory in bytes; keys stay as they are."""
    return {
        "benchmark": "train",
        "version": version,
        "seed": settings.seed,
        "machine": machine_dict(machine),
        "device": settings.device.type,
        "dtype": "float32",
        "dim": settings.dim,
        "tokens": settings.tokens,
        "label_smoothing": LABEL_SMOOTHING if settings.smoothing else 0.0,
        "group_prototypes": settings.prototypes,
        "cpu_time": settings.cpu_time,
        "targets": "zipf",
        "shapes": [
            {
                "vocab_size": len(shape.codebook),
                "lengths": list(shape.codebook.lengths),
                "codebook": shape.codebook.fingerprint,
                "rounds": shape.rounds,
                "heads": [_head_dict(head) for head in shape.heads],
            }
            for shape in shapes
        ],
        "growth": [_growth_dict(result) for result in growth],
    }


def machine_dict(machine: Machine) -> dict[str, Any]:
    """As in every benchmark's JSON."""
    return {
        "cpu": machine.cpu,
        "cores": machine.cores,
        "threads": machine.threads,
        "gpu": machine.gpu,
        "torch": machine.torch_version,
        "python": machine.python_version,
    }


def _head_dict(head: HeadResult) -> dict[str, Any]:
    return {
        "head": head.head,
        "milliseconds": 1000 * head.samples.median,
        "round_milliseconds": [1000 * s for s in head.samples.seconds],
        "steps_per_round": head.samples.steps,
        "ratio": head.ratio,
        "ratio_min": head.ratio_range[0],
        "ratio_max": head.ratio_range[1],
        "ratio_bar": head.ratio_bar,
        "ratio_met": None if head.ratio_bar is None else head.ratio >= head.ratio_bar,
        "memory_bytes": head.memory.extra,
        "memory_share": head.memory_share,
        "memory_bar": head.memory_bar,
        "memory_met": None if head.memory_bar is None else head.memory_share <= head.memory_bar,
        "gradient_bytes": head.memory.gradients,
        "parameters": head.parameters,
    }


def _growth_dict(result: GrowthResult) -> dict[str, Any]:
    return {
        "head": result.head,
        "vocab_sizes": result.vocabs,
        "milliseconds": [1000 * s.median for s in result.steps],
        "optimizer": "fused Adam",
        "optimizer_milliseconds": [1000 * s.median for s in result.optimizer],
        "exponent": result.exponent,
        "optimizer_exponent": result.optimizer_exponent,
        "exponent_bar": result.bar,
        "exponent_met": None if result.bar is None else result.exponent <= result.bar,
    }


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False)


def _rounds(number: int) -> str:
    return "1 round" if number == 1 else f"{number} rounds in turns"


def _at_least(value: float, bar: float | None) -> str:
    return "-" if bar is None else f"{bar:g}x {'met' if value >= bar else 'missed'}"


def _at_most(value: float, bar: float | None) -> str:
    return "-" if bar is None else f"{bar:g} {'met' if value <= bar else 'missed'}"


def _number(value: float) -> str:
    """Three digits that mean something: 1,234 - 123 - 12.3 - 1.23 - 0.0123."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}"
