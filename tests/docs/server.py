"""Forks fairseq's commands and `mhe` for the shell blocks of the documentation, and shortens what takes long.

python -m tests.docs.server SOCKET
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tests import command_forks
from tests.helpers import command_env

#: A training of the documentation is cut to this: it shows that the command works, and leaves a checkpoint.
_FEW_UPDATES = [
    "--cpu",
    "--num-workers",
    "0",
    "--max-update",
    "2",
    "--update-freq",
    "1",
    "--log-interval",
    "1",
]
_WIDTHS = {"embed-dim": 16, "ffn-embed-dim": 16, "layers": 1, "attention-heads": 2}


def shortened(line: list[str]) -> list[str]:
    """A command with other arguments after its own, which win: CPU, tiny, few updates, short translations."""
    name, arguments = Path(line[0]).name, line[1:]
    return [line[0], *_shortened(name, arguments)]


def _shortened(name: str, arguments: list[str]) -> list[str]:
    if name == "fairseq-hydra-train":
        sizes = [f"model.{word}" for word in _sizes(("encoder", "decoder"), _WIDTHS)]
        return [*arguments, "common.cpu=true", "dataset.num_workers=0", "optimization.max_update=2", *sizes]
    if name == "fairseq-train":
        return [*arguments, *_FEW_UPDATES, *_small(arguments)]
    if name in {"fairseq-generate", "fairseq-interactive"}:
        return [*arguments, "--cpu", "--num-workers", "0", "--max-len-b", "10"]
    if name in {"fairseq-validate", "fairseq-eval-lm"}:
        return [*arguments, "--cpu", "--num-workers", "0"]
    return arguments


def _sizes(sides: Sequence[str], widths: Mapping[str, int]) -> Iterator[str]:
    for side in sides:
        for key, value in widths.items():
            yield f"{side}-{key}={value}".replace("-", "_")


def _small(arguments: list[str]) -> list[str]:
    arch = arguments[arguments.index("--arch") + 1]
    sides: Sequence[str] = ("encoder", "decoder")
    widths = dict(_WIDTHS)
    if arch == "mhe_label_bag":
        return ["--mhe-bag-dim=16", "--mhe-pair-buckets=64"]
    if "_lm" in arch:
        sides = ("decoder",)
        widths |= {"input-dim": 16, "output-dim": 16}
    elif "roberta" in arch or "xlm" in arch:
        sides = ("encoder",)
    return [f"--{word.replace('_', '-')}" for word in _sizes(sides, widths)]


def start(folder: Path) -> subprocess.Popen[bytes]:
    """The server as a process, its clients in ``folder``/bin; returns when it listens."""
    process = command_forks.start(folder, "tests.docs.server", command_env())
    command_forks.wait_for(process, folder / "socket")
    return process


if __name__ == "__main__":
    command_forks.serve(sys.argv[1], shortened)
