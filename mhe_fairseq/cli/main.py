"""`mhe COMMAND ...`: what one does beside training, from planning the heads to measuring them."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.version import __version__

#: Modules of this package, one a command. Each has ``add_parser(subparsers)``, which sets the default
#: ``run``, and ``run(args) -> int``, the exit status.
COMMANDS = ("plan", "assign", "analyze", "bench", "convert", "export", "label", "signature")


class _Parser(argparse.ArgumentParser):
    """Bad arguments are bad input like any other: one sentence, exit 1."""

    def error(self, message: str) -> NoReturn:
        raise MHEError(f"{message} (`{self.prog} --help` shows what there is)")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(prog="mhe", description="Multi-head encoding output layers for fairseq.")
    parser.add_argument("--version", action="version", version=f"mhe_fairseq {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name in COMMANDS:
        importlib.import_module(f"mhe_fairseq.cli.{name}").add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: the words after ``mhe`` (default: the process's own).

    Returns:
        exit status: 0, 1 after bad input (one sentence on stderr), 130 when interrupted.
    """
    # Modules of fairseq call basicConfig(level=DEBUG) on import, which does nothing after this; and it
    # tells about optional packages and every file it opens.
    logging.basicConfig(level=logging.WARNING)
    for name in ("fairseq", "mhe_fairseq"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        args = make_parser().parse_args(argv)
        status: int = args.run(args)
        sys.stdout.flush()
        return status
    except MHEError as error:
        print(f"mhe: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mhe: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has left. Python would complain once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
