#!/usr/bin/env python3
"""Time a training step of the output layers, forward and backward, against the dense one.

    python examples/classification/time_layer.py --classes 10000 --dim 512 --batch 256

Layers take turns, round after round. Of each the median is told, and the median of its ratios to the first
layer in the same round. Weights and features are random; there is no network below.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

import layers  # noqa: E402

from mhe_fairseq.bench.timing import interleave  # noqa: E402
from mhe_fairseq.errors import MHEError  # noqa: E402
from mhe_fairseq.heads import OutputHead  # noqa: E402


class LayerStep:
    """A step of one layer."""

    def __init__(self, head: OutputHead, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.head = head.to(args.device).train()
        for parameter in self.head.parameters():
            nn.init.normal_(parameter, std=0.04)
        self.x = torch.randn(args.batch, args.dim, device=args.device, requires_grad=True)
        self.y = torch.randint(args.classes, (args.batch,), device=args.device)
        self.update = 0

    def prepare(self) -> None:
        for each in (self.x, *self.head.parameters()):
            each.grad = None
        self.update += 1
        self.head.set_num_updates(self.update)

    def run(self) -> None:
        self.head(self.x, self.y, smoothing=False).nll.mean().backward()

    def release(self) -> None:
        self.prepare()


def run(args: argparse.Namespace) -> None:
    steps = {}
    for name in args.heads:
        head, _, margin = name.partition("+")
        own = {"head": head, "margin": margin or None, "shard": False}
        rows = {"prototypes": args.prototypes if head == "cascade" else 1}
        given = argparse.Namespace(**{**vars(args), **own, **rows})
        if head not in layers.HEADS or margin not in ("", "arcface", "cosface"):
            raise MHEError(
                f"a layer is one of {', '.join(layers.HEADS)}, with +arcface or +cosface; got {name!r}"
            )
        steps[name] = LayerStep(layers.build(given, args.dim, args.classes), args)
    wait = torch.cuda.synchronize if args.device.startswith("cuda") else (lambda: None)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter
    samples = interleave(steps, args.rounds, wait, clock)
    dense = samples[args.heads[0]]
    print(f"{args.classes:,} classes, {args.dim} dimensions, {args.batch} images, {args.rounds} rounds")
    print(f"| layer | parameters | ms a step | times faster than {args.heads[0]} |")
    print("| --- | ---: | ---: | ---: |")
    for name, each in samples.items():
        ratio = statistics.median(a / b for a, b in zip(dense.seconds, each.seconds, strict=True))
        size = sum(parameter.numel() for parameter in steps[name].head.parameters())
        print(f"| {name} | {size:,} | {1000 * each.median:.1f} | {ratio:.2f} |")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    every = [*layers.HEADS, "softmax+arcface", "sampling+arcface"]
    add("--heads", nargs="+", default=every, help="the first is what others are compared with (default: all)")
    add("--classes", type=int, default=10_000, help="default: %(default)s")
    add("--dim", type=int, default=512, help="of the features (default: %(default)s)")
    add("--batch", type=int, default=256, help="default: %(default)s")
    add("--lengths", help="of the digits of a class (default: planned)")
    add("--groups", type=int, help="that sampling draws (default: its own)")
    add("--mixtures", type=int, default=4, help="default: %(default)s")
    add("--prototypes", type=int, default=1, help="of the cascade: rows of a group (default: %(default)s)")
    add("--scale", type=float, default=64.0, help="of the margins (default: %(default)s)")
    add("--rounds", type=int, default=7, help="default: %(default)s")
    add("--clock", choices=("time", "cpu"), default="time", help="cpu: this process's own (default: time)")
    add("--device", default="cpu", help="default: %(default)s")
    add("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    args.order, args.margin_size = "given", None
    try:
        run(args)
    except MHEError as error:
        print(f"time_layer.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
