"""The arguments that commands which prepare text have in common."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

_AGAIN = (
    "Input is checked before anything is written. Files are written under another name and renamed when\n"
    "complete, and files that exist are kept: the command may be stopped at any time and run again."
)


def preparing(description: str | None) -> argparse.ArgumentParser:
    """A parser with ``--out``, whose help ends with what holds for every preparation."""
    parser = argparse.ArgumentParser(
        description=description, epilog=_AGAIN, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=out_folder, required=True, help="folder to write")
    return parser


def out_folder(text: str) -> Path:
    """A folder that fairseq's commands can be given: they take a comma or a colon in a path for two paths."""
    if {",", ":"} & set(text):
        raise argparse.ArgumentTypeError(
            f"fairseq's commands take a path with a comma or a colon for two paths; give another, not {text}"
        )
    return Path(text)


def add_pair(parser: argparse.ArgumentParser, src: str | None = None, tgt: str | None = None) -> None:
    """``--source``, ``--src`` and ``--tgt``; the languages are required where no default is given."""
    parser.add_argument(
        "--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]"
    )
    for name, language, side in (("--src", src, "source"), ("--tgt", tgt, "target")):
        default = "" if language is None else " (default: %(default)s)"
        parser.add_argument(
            name, default=language, required=language is None, help=f"{side} language{default}"
        )


def add_tokenize(parser: argparse.ArgumentParser | argparse._MutuallyExclusiveGroup, help: str) -> None:
    """``--tokenize moses|none``."""
    parser.add_argument(
        "--tokenize", choices=("moses", "none"), default="none", help=f"{help} (default: %(default)s)"
    )


def add_language(parser: argparse.ArgumentParser) -> None:
    """``--language``, where none is known from elsewhere."""
    parser.add_argument(
        "--language", default="en", help="language of --tokenize moses (default: %(default)s)"
    )


def add_workers(parser: argparse.ArgumentParser, default: int | None = None) -> None:
    """``--workers``; by default one for every core that this process may use."""
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--workers",
        type=int,
        default=cores if default is None else default,
        help="processes (default: %(default)s" + (", the cores here)" if default is None else ")"),
    )
