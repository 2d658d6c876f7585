"""What the benchmarks' commands share: flags, their checks, JSON."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.errors import MHEError


def add_output_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every benchmark has."""
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of weights and data (default 1)")
    parser.add_argument("--threads", type=int, metavar="T", help="threads (default: torch's)")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="seconds of processor time in place of the clock's, for a machine that others use too; "
        "with --threads 1",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    parser.add_argument(
        "--quick", action="store_true", help="use tiny sizes where none are given, to see that it runs"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="also write JSON to FILE; without FILE, or with -, print it instead of the tables",
    )


def check_output_args(args: argparse.Namespace) -> None:
    """Refuse bad values before the work.

    Raises:
        MHEError: a seed torch has not, less than one thread, processor time of several, a JSON file that
            cannot be written.
    """
    if args.threads is not None and args.threads < 1:
        raise MHEError(f"--threads must be at least 1, got {args.threads}")
    if args.cpu_time and (args.device != "cpu" or args.threads != 1):
        raise MHEError(
            "--cpu-time adds up the processor time of all threads, and knows nothing of a GPU; give "
            f"--threads 1 --device cpu, not --threads {args.threads} --device {args.device}"
        )
    if not 0 <= args.seed < 2**63:
        raise MHEError(f"--seed must be at least 0 and below 2^63, got {args.seed}")
    if args.json not in (None, "-"):
        check_output(Path(args.json), "bench.json")


def choose_heads(text: str | None, heads: Iterable[str]) -> list[str]:
    """The heads to measure, in the order of ``heads``; None: all.

    Raises:
        MHEError: one that there is not.
    """
    known = list(heads)
    if text is None:
        return known
    wanted = [name.strip() for name in text.split(",")]
    for name in wanted:
        if name not in known:
            raise MHEError(f"there is no head {name!r} to measure; there are {', '.join(known)}")
    return [name for name in known if name in wanted]


def write_json(path: str, text: str) -> None:
    """To a file, or to stdout for "-"."""
    if path == "-":
        print(text)
    else:
        write_whole(Path(path), lambda temporary: temporary.write_text(text + "\n", encoding="utf-8"))
