"""The tables and advice that `mhe plan` prints."""

from __future__ import annotations

from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mhe_fairseq.cli.plan_gpu import GpuPlan
from mhe_fairseq.cli.plan_heads import HeadPlan


class Report(NamedTuple):
    """What is printed.

    Attributes:
        dictionary: as it was given.
        vocab_size, dim, batch_tokens, beam: sizes.
        frequencies: where they come from.
        heads: what each costs.
        choice, reason: the head that is recommended.
        gpu: what is expected of one; None: not asked for.
    """

    dictionary: str
    vocab_size: int
    dim: int
    batch_tokens: int
    beam: int
    frequencies: str
    heads: list[HeadPlan]
    choice: str
    reason: str
    gpu: GpuPlan | None


def print_report(report: Report, both: bool) -> None:
    """Print it; ``both``: the GPU's advice is another than ``report.choice``, and follows it."""
    # Not a terminal: a fixed width, so that no column is folded in a log.
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=max(console.width, 118))
    _print_counts(console, report)
    if report.gpu is not None:
        console.print()
        _print_gpu(console, report, report.gpu)
    console.print()
    console.print(Text.assemble(("* Recommended: ", "bold"), f"{report.choice}. ", report.reason))
    if both and report.gpu is not None:
        advice = Text.assemble(("On a GPU: ", "bold"), f"{report.gpu.recommended}. ", report.gpu.reason)
        console.print()
        console.print(advice)


def _print_counts(console: Console, report: Report) -> None:
    table = Table(title=Text(f"{report.dictionary}: {report.vocab_size:,} tokens, d = {report.dim:,}"))
    table.add_column("head")
    for column in (
        "lengths",
        "holes",
        "parameters",
        "training\nmult-adds",
        "\nbytes",
        "search\nmult-adds",
        "\nbytes",
        "groups touched\nby a batch",
    ):
        table.add_column(column, justify="right")
    for head in report.heads:
        touched = "-" if head.groups is None else f"{head.touched_groups:,.0f} of {head.groups:,}"
        table.add_row(
            _name(head, report),
            " x ".join(map(str, head.lengths)) or "-",
            f"{head.holes:,}" if head.lengths else "-",
            short(head.parameters),
            short(head.train_macs),
            short(head.train_bytes),
            short(head.search_macs),
            short(head.search_bytes),
            touched,
        )
    console.print(table)
    console.print(
        "Of the output layer, a token. Training: forward and backward multiply-adds, fp32 scores held. "
        f"Search: the {2 * report.beam} best tokens of a hypothesis, exactly; the cascade is assumed to "
        "open as many groups, and the mixture as many rows; a confident model needs fewer. Sampling draws "
        "random groups; with --mhe-codebook it draws predicted ones. Groups touched: "
        f"by the gold tokens of a batch of {report.batch_tokens:,} (and those sampled), in dictionary order, "
        f"frequencies from {report.frequencies}.",
        markup=False,
    )


def _print_gpu(console: Console, report: Report, gpu: GpuPlan) -> None:
    machine = gpu.machine
    table = Table(title=Text(f"On a GPU, calculated, not measured: {machine.name}"))
    table.add_column("head", no_wrap=True)
    for step in (
        ("training\nbytes", "\nin fp32", "peak\nbytes", "\nin fp32"),
        ("search\nbytes", "\nin fp32"),
    ):
        for column in (*step, "\nlaunches", "\nms"):
            table.add_column(column, justify="right")
    for head in report.heads:
        cost = gpu.costs[head.head]
        table.add_row(
            _name(head, report),
            short(cost.train_bytes_half),
            short(cost.train_bytes_fp32),
            short(cost.peak_half),
            short(cost.peak_fp32),
            f"{cost.train_launches}",
            f"{cost.train_ms:.3g}",
            short(cost.search_bytes_half),
            short(cost.search_bytes_fp32),
            f"{cost.search_launches}",
            f"{cost.search_ms:.3g}",
        )
    console.print(table)
    console.print(
        f"Of the output layer, a step: {report.batch_tokens:,} tokens in training, {gpu.hypotheses:,} "
        "hypotheses in search. Bytes read and written, and held at the peak besides weights, features and "
        "the weights' gradients: in half precision, in fp32. Softmax (and sampling, in search): as fairseq "
        f"computes it. Milliseconds, in half precision: launches of {machine.launch_us:g} us on the host, "
        f"or bytes and products on the device at {machine.reached:.0%} of {machine.bandwidth:,g} GB/s and "
        f"{machine.tflops:,g} TFLOP/s, whichever takes longer. Not counted: the rest of the model, and the "
        "optimiser, which moves every row of a table of V rows.",
        markup=False,
    )


def _name(head: HeadPlan, report: Report) -> str:
    return f"{head.head} *" if head.head == report.choice else head.head


def short(number: int) -> str:
    """1234567 -> 1.23M."""
    for unit, scale in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= scale:
            return f"{number / scale:.3g}{unit}" if number < 999.5 * scale else f"{number / scale:,.0f}{unit}"
    return str(number)
