"""What the benchmarks' commands share: flags, their checks, a progress bar, JSON."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from mhe_fairseq.errors import MHEError


def add_output_args(parser: argparse.ArgumentParser) -> None:
    """Add the flags that every benchmark has."""
    parser.add_argument("--seed", type=int, default=1, metavar="S", help="of weights and data (default 1)")
    parser.add_argument("--threads", type=int, metavar="T", help="threads (default: torch's)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default cpu)")
    parser.add_argument(
        "--quick", action="store_true", help="tiny sizes where none are given: to see that it runs"
    )
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write JSON to FILE too; without FILE, or with -, print it in place of the tables",
    )


def check_output_args(args: argparse.Namespace) -> None:
    """Refuse bad values before the work.

    Raises:
        MHEError: a seed torch has not, less than one thread, a JSON file that cannot be written.
    """
    if args.threads is not None and args.threads < 1:
        raise MHEError(f"--threads must be at least 1, got {args.threads}")
    if not 0 <= args.seed < 2**63:
        raise MHEError(f"--seed must be at least 0 and below 2^63, got {args.seed}")
    if args.json not in (None, "-"):
        _check_output(Path(args.json))


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


def _check_output(path: Path) -> None:
    """Refuse, before the work, what could not be written after it."""
    if path.is_dir():
        raise MHEError(f"--json {path} is a directory; give a file name, such as {path / 'bench.json'}")
    if not path.parent.is_dir():
        raise MHEError(f"there is no directory {path.parent} to write --json {path} to; make it first")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise MHEError(f"--json {path} may not be written to; give another file")


def write_json(path: str, text: str) -> None:
    """To a file, or to stdout for "-"."""
    if path == "-":
        print(text)
    else:
        Path(path).write_text(text + "\n", encoding="utf-8")


class Bar:
    """A progress bar on stderr for each thing measured."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:16}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            # A bar drawn ten times a second would take its share of the cores.
            auto_refresh=False,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what)
        self._progress.update(self._tasks[what], completed=done, total=total, refresh=True)
