"""`mhe bench ...`: heads against the softmax, on the machine at hand."""

from __future__ import annotations

import argparse
from typing import Any

from mhe_fairseq.cli import bench_decode, bench_train


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe bench` and its subcommands."""
    parser = subparsers.add_parser(
        "bench",
        help="measure heads against the softmax on this machine",
        description="Measure heads against the softmax on this machine.",
    )
    benchmarks = parser.add_subparsers(dest="benchmark", metavar="BENCHMARK", required=True)
    bench_train.add_parser(benchmarks)
    bench_decode.add_parser(benchmarks)
