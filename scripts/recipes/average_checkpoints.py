#!/usr/bin/env python3
"""Average the last checkpoints of a training into one checkpoint to translate with.

    python scripts/recipes/average_checkpoints.py CHECKPOINTS --last 5 -o averaged.pt

takes the N ``checkpoint_EPOCH_UPDATES.pt`` with the most updates, or all where there are fewer. (fairseq
writes none where a save falls on the end of an epoch.) Weights are averaged in fp32 and rounded once.
Codebooks must be the same in all. The optimiser's state is left out, so training cannot continue from the
average.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from mhe_fairseq.cli.checkpoint import read_checkpoint  # noqa: E402
from mhe_fairseq.cli.output import check_output, write_whole  # noqa: E402
from mhe_fairseq.errors import MHEError  # noqa: E402


class AverageError(Exception):
    """Bad input, said in one sentence."""


def last(folder: Path, count: int) -> list[Path]:
    """The checkpoints with most updates, at most ``count``, the newest last.

    Raises:
        AverageError: there is none.
    """
    found = {}
    for path in folder.glob("checkpoint_*.pt"):
        name = re.fullmatch(r"checkpoint_\d+_(\d+)\.pt", path.name)
        if name is not None:
            found[int(name[1])] = path
    if not found:
        raise AverageError(
            f"{folder} has no checkpoint_EPOCH_UPDATES.pt to average; save some with --save-interval-updates"
        )
    return [found[updates] for updates in sorted(found)[-count:]]


def average(paths: list[Path]) -> dict[str, Any]:
    """The last of some checkpoints, its weights the mean of all.

    Raises:
        AverageError: they are not of one model.
    """
    sums: dict[str, torch.Tensor] = {}
    state: dict[str, Any] = {}
    for path in paths:
        state = read_checkpoint(path)
        model = state["model"]
        if not sums:
            sums = {
                name: value.float() if value.is_floating_point() else value for name, value in model.items()
            }
            continue
        for name, value in model.items():
            if name not in sums or sums[name].shape != value.shape or len(model) != len(sums):
                raise AverageError(f"{path} and {paths[0]} are not of one model: they differ in {name}")
            if value.is_floating_point():
                sums[name] = sums[name] + value.float()
            elif not torch.equal(sums[name], value):
                raise AverageError(
                    f"{path} and {paths[0]} are not of one model: their codebooks differ in {name}"
                )
    for name, value in state["model"].items():
        if value.is_floating_point():
            state["model"][name] = (sums[name] / len(paths)).to(value.dtype)
    state["last_optimizer_state"] = None
    # Plain containers, as fairseq saves it.
    state["cfg"] = OmegaConf.to_container(state["cfg"], resolve=True, enum_to_str=True)
    return state


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="CHECKPOINTS", help="the --save-dir of fairseq-train")
    parser.add_argument(
        "--last", type=int, required=True, metavar="N", help="number of checkpoints to average"
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FILE", help="checkpoint to write"
    )
    args = parser.parse_args(argv)
    try:
        if args.last < 1:
            raise AverageError(f"--last must be at least 1, got {args.last}")
        check_output(args.output, "averaged.pt")
        paths = last(args.folder, args.last)
        state = average(paths)
        write_whole(args.output, lambda path: torch.save(state, path))
    except (AverageError, MHEError) as error:
        print(f"average_checkpoints.py: error: {error}", file=sys.stderr)
        return 1
    names = ", ".join(path.name for path in paths)
    few = "" if len(paths) == args.last else f" ({args.last} were asked for)"
    print(f"{args.output}: the mean of {names}{few}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
