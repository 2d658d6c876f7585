"""Trainings by several ranks on this machine, as a cluster's launcher starts them: one process each, gloo."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from tests.helpers import REPO, command_env, resolve_command, run_command

BACKEND = ["--distributed-backend", "gloo", "--distributed-no-spawn"]

#: For an environment in which Python or Triton begin in another way than in the server of commands. Runs one
#: training after the other, each rank in a process that has fairseq imported already, which takes seconds.
#: Reads [[[log, *arguments of fairseq-train] of each rank] of each training]; prints the exit statuses, a
#: line a training.
RUNNER = """
import json, os, sys
from pathlib import Path
import fairseq_cli.train
import torch._dynamo
import mhe_fairseq
from scripts.common import faster_hydra, faster_interpreter
faster_hydra.install(Path(sys.argv[1]).with_name("configurations"))
if os.environ.get("TRITON_INTERPRET"):
    faster_interpreter.install()
for training in json.load(open(sys.argv[1])):
    ranks = []
    for log, *arguments in training:
        ranks.append(os.fork())
        if not ranks[-1]:
            for stream in (1, 2):
                os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
            sys.argv = ["fairseq-train", *arguments]
            fairseq_cli.train.cli_main()
            sys.exit()
    print("ended:", *(os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1]) for rank in ranks))
"""

#: Exit status and what it said.
Ended = tuple[int, str]


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _placed(lines: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """The commands of ranks, each told which it is and where they meet."""
    place = ["--distributed-init-method", f"tcp://127.0.0.1:{free_port()}", *BACKEND]
    size = ["--distributed-world-size", str(len(lines))]
    return [[*line, *place, *size, "--distributed-rank", str(rank)] for rank, line in enumerate(lines)]


def _started(lines: Sequence[Sequence[str]], logs: Sequence[Path]) -> list[subprocess.Popen[str]]:
    """A process for each rank of a training, which writes what it says to a log."""
    return [
        subprocess.Popen(
            resolve_command(line, forked=True),
            cwd=REPO,
            env=command_env(),
            stdin=subprocess.DEVNULL,
            stdout=log.open("w"),
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line, log in zip(lines, logs, strict=True)
    ]


def start_ranks(line: Sequence[str], logs: Path, ranks: int = 2) -> list[subprocess.Popen[str]]:
    """Start a command once a rank; what rank R says goes to ``logs``/rankR.log."""
    logs.mkdir(parents=True, exist_ok=True)
    return _started(_placed([line] * ranks), [logs / f"rank{rank}.log" for rank in range(ranks)])


def run_trainings(
    trainings: Sequence[Sequence[Sequence[str]]], logs: Path, env: Mapping[str, str] | None = None
) -> list[list[Ended]]:
    """Run trainings, a command for each of their ranks, to their ends. A single rank is told of no other.
    Whatever the first word of a command is, fairseq-train is run."""
    logs.mkdir(parents=True, exist_ok=True)
    files = [
        [logs / f"training{number}rank{rank}.log" for rank in range(len(lines))]
        for number, lines in enumerate(trainings)
    ]
    placed = [_placed(lines) if len(lines) > 1 else list(lines) for lines in trainings]
    statuses = []
    if env is None:
        for lines, said in zip(placed, files, strict=True):
            ranks = _started([["fairseq-train", *line[1:]] for line in lines], said)
            statuses.append([rank.wait(timeout=600) for rank in ranks])
    else:
        arguments = [
            [[str(log), *line[1:]] for line, log in zip(lines, said, strict=True)]
            for lines, said in zip(placed, files, strict=True)
        ]
        (logs / "trainings.json").write_text(json.dumps(arguments))
        done = run_command(["python", "-c", RUNNER, str(logs / "trainings.json")], env=env)
        for line in done.stdout.splitlines():
            if line.startswith("ended:"):
                statuses.append(list(map(int, line.split()[1:])))
    return [
        [(code, log.read_text(errors="replace")) for code, log in zip(codes, said, strict=True)]
        for codes, said in zip(statuses, files, strict=True)
    ]


def run_lines(
    lines: Sequence[Sequence[str]], logs: Path, env: Mapping[str, str] | None = None
) -> list[Ended]:
    """Run a command for each rank of one training."""
    return run_trainings([lines], logs, env)[0]


def run_ranks(line: Sequence[str], logs: Path, ranks: int = 2) -> list[str]:
    """Run a command once a rank, to its good end; what each said."""
    ended = run_lines([line] * ranks, logs)
    assert not any(code for code, _ in ended), "\n".join(text[-4000:] for _, text in ended)
    return [text for _, text in ended]


def weights(folder: Path) -> dict[str, Tensor]:
    """Of the last checkpoint in a folder."""
    model: dict[str, Tensor] = torch.load(folder / "checkpoint_last.pt", weights_only=True)["model"]
    return model
