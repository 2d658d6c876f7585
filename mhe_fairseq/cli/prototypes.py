"""``--group-prototypes`` of the commands that say what heads cost."""

from __future__ import annotations

import argparse

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.cascade.group import MOST_PROTOTYPES


def add_prototypes_arg(parser: argparse.ArgumentParser) -> None:
    """Add the flag."""
    parser.add_argument(
        "--group-prototypes",
        type=int,
        default=1,
        metavar="M",
        help="rows of each of a cascade's groups, as --mhe-group-prototypes (default 1)",
    )


def check_prototypes(args: argparse.Namespace) -> int:
    """The flag's value.

    Raises:
        MHEError: it is not in 1..64.
    """
    count: int = args.group_prototypes
    if not 1 <= count <= MOST_PROTOTYPES:
        raise MHEError(f"--group-prototypes must be 1..{MOST_PROTOTYPES}, got {count}")
    return count
