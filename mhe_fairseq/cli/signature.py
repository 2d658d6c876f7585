"""`mhe signature`: what checkpoints were trained with, a line each."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mhe_fairseq.cli.checkpoint import read_checkpoint
from mhe_fairseq.errors import MHEError


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe signature`."""
    parser = subparsers.add_parser(
        "signature",
        help="print what a checkpoint was trained with",
        description="Print the signature of checkpoints: the line that their training logged, and that "
        "fairseq-generate and every other command logs when it reads them.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", nargs="+")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print them, after the file's name where there are several.

    Raises:
        MHEError: no such checkpoint, one that is damaged, or one without a signature.
    """
    for name in args.checkpoint:
        if not Path(name).is_file():
            raise MHEError(f"there is no checkpoint {name}")
        model = read_checkpoint(Path(name))["cfg"].model
        line = getattr(model, "mhe_signature", None)
        if line is None:
            raise MHEError(
                f"checkpoint {name} has no signature: it is not of a model of this plugin, or was "
                "trained before signatures existed"
            )
        print(line if len(args.checkpoint) == 1 else f"{name}: {line}")
    return 0
