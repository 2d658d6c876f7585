"""Trainings by several ranks on this machine, as a cluster's launcher starts them: one process each, gloo."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tests.helpers import REPO, command_env, resolve_command

#: fairseq gives torch's own DDP a device number, which it refuses for a model on the CPU.
BACKEND = ["--distributed-backend", "gloo", "--distributed-no-spawn", "--ddp-backend", "legacy_ddp"]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start_ranks(
    line: Sequence[str], logs: Path, ranks: int = 2, own: Sequence[Sequence[str]] = ()
) -> list[subprocess.Popen[str]]:
    """Start a command once a rank; what rank R says goes to ``logs``/rankR.log.

    Args:
        line: the command.
        logs: folder for what they say.
        ranks: how many.
        own: flags of each rank, where they differ.
    """
    logs.mkdir(parents=True, exist_ok=True)
    place = ["--distributed-init-method", f"tcp://127.0.0.1:{free_port()}", *BACKEND]
    size = ["--distributed-world-size", str(ranks)]
    return [
        subprocess.Popen(
            resolve_command(
                [*line, *place, *size, "--distributed-rank", str(rank), *(own[rank] if own else ())]
            ),
            cwd=REPO,
            env=command_env(),
            stdin=subprocess.DEVNULL,
            stdout=(logs / f"rank{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]


def run_ranks(
    line: Sequence[str],
    logs: Path,
    ranks: int = 2,
    check: bool = True,
    own: Sequence[Sequence[str]] = (),
) -> list[str]:
    """Run them to their end; what each said.

    Args:
        line: the command.
        logs: folder for what they say.
        ranks: how many.
        check: fail where one fails; otherwise all have to.
        own: flags of each rank, where they differ.
    """
    running = start_ranks(line, logs, ranks, own)
    try:
        codes = [each.wait(timeout=300) for each in running]
    finally:
        for each in running:
            each.kill()
    said = [(logs / f"rank{rank}.log").read_text(errors="replace") for rank in range(ranks)]
    assert any(codes) != check and (check or all(codes)), "\n".join(text[-4000:] for text in said)
    return said
