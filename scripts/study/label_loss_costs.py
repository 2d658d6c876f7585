#!/usr/bin/env python3
"""What a step of the loss of documents with several labels costs: a cascade beside the dense layer.

    python scripts/study/label_loss_costs.py --labels 10000,500000 --json FILE

Features and labels are made up: labels are drawn by Zipf's law, the cascade's groups are those of its order.
A step is the loss of a batch and all its gradients. Times are medians of CPU seconds, the two in
turns; memory is the peak beside parameters and their gradients.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from mhe_fairseq.bench.memory import measure_peak  # noqa: E402
from mhe_fairseq.bench.timing import clock_of, interleave  # noqa: E402
from mhe_fairseq.coding import Codebook  # noqa: E402
from mhe_fairseq.coding.plan import plan_label_lengths  # noqa: E402
from mhe_fairseq.errors import MHEError  # noqa: E402
from mhe_fairseq.heads import CascadeHead, OutputHead, SoftmaxHead  # noqa: E402

HEADS: dict[str, Callable[[int, Codebook], OutputHead]] = {
    "dense": SoftmaxHead,
    "cascade": CascadeHead,
}


def batch(count: int, labels: int, each: int, dim: int) -> tuple[Tensor, Tensor]:
    """Features (N, d) and labels (N, M), those of a document all different."""
    generator = torch.Generator().manual_seed(1)
    weights = 1.0 / torch.arange(1, labels + 1, dtype=torch.float64)
    chosen = torch.multinomial(weights.expand(count, -1), each, generator=generator)
    return torch.randn(count, dim, generator=generator), chosen


def measure(labels: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each head.

    Args:
        labels: V.
        args: the flags.
    """
    book = Codebook(plan_label_lengths(labels), vocab_size=labels)
    features, chosen = batch(args.documents, labels, args.each, args.dim)
    features.requires_grad_()
    steps: dict[str, LossStep] = {}
    rows: list[dict[str, Any]] = []
    for name, make in HEADS.items():
        torch.manual_seed(1)
        step = steps[name] = LossStep(make(args.dim, book), features, chosen)
        peak = measure_peak(step.loss, list(step.head.parameters()))
        rows.append({"labels": labels, "head": name, "extra_bytes": peak.extra})
    times = interleave(steps, args.rounds, clock=clock_of(cpu_time=True))
    return [row | {"seconds": times[row["head"]].median} for row in rows]


class LossStep:
    """The loss of a batch and its gradients, timed."""

    def __init__(self, head: OutputHead, features: Tensor, chosen: Tensor) -> None:
        self.head, self.features, self.chosen = head, features, chosen

    def loss(self) -> Tensor:
        return self.head.label_loss(self.features, self.chosen).mean()

    def prepare(self) -> None:
        self.release()

    def run(self) -> None:
        self.loss().backward()

    def release(self) -> None:
        """Of gradients."""
        self.features.grad = None
        self.head.zero_grad(set_to_none=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--labels", default="10000,500000", metavar="V,...", help="(default: %(default)s)")
    parser.add_argument("--documents", type=int, default=128, metavar="N", help="(default: %(default)s)")
    parser.add_argument(
        "--each", type=int, default=5, metavar="M", help="labels of one (default: %(default)s)"
    )
    parser.add_argument("--dim", type=int, default=256, metavar="D", help="(default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each head (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there, too")
    args = parser.parse_args(argv)
    try:
        sizes = [int(text) for text in args.labels.split(",")]
        if min(*sizes, 2**62) <= args.each or min(args.documents, args.each, args.dim, args.rounds) < 1:
            raise ValueError
    except ValueError:
        print(
            "label_loss_costs.py: error: --labels are whole numbers above --each, and all others at least 1; "
            f"got --labels {args.labels} --each {args.each}",
            file=sys.stderr,
        )
        return 1
    try:
        rows = [row for size in sizes for row in measure(size, args)]
    except MHEError as error:
        print(f"label_loss_costs.py: error: {error}", file=sys.stderr)
        return 1
    for row in rows:
        print(
            f"{row['labels']:>9,} labels  {row['head']:8} {row['seconds'] * 1e3:9.1f} ms of CPU  "
            f"{row['extra_bytes'] / 2**20:9.1f} MiB"
        )
    if args.json is not None:
        args.json.write_text(
            json.dumps({"flags": vars(args) | {"json": None}, "rows": rows}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
