"""Runs fairseq's commands and `mhe` for the shell blocks of the documentation, without their start-up.

    python -m tests.docs.server SOCKET

A process that has imported fairseq forks one for each command (``scripts/common/forked.py``), and shortens
what takes long. ``write_clients`` makes the commands that shell blocks find on their PATH: each sends its
arguments, folder, environment and open files here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from scripts.common import forked
from tests.command_forks import MORE
from tests.helpers import BIN, REPO, command_env

COMMANDS = (
    "fairseq-train",
    "fairseq-generate",
    "fairseq-interactive",
    "fairseq-validate",
    "fairseq-eval-lm",
    "fairseq-preprocess",
    "fairseq-hydra-train",
    "mhe",
)

_CLIENT = """#!{python} -SI
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({socket!r})
    name = os.path.basename(sys.argv[0])
    request = json.dumps([name, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    sys.exit(int(server.recv(16) or b"1"))
"""

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


def shortened(name: str, arguments: list[str]) -> list[str]:
    """``arguments`` with others after them, which win: CPU, tiny, a few updates, short translations."""
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
    if "_lm" in arch:
        sides = ("decoder",)
        widths |= {"input-dim": 16, "output-dim": 16}
    elif "roberta" in arch or "xlm" in arch:
        sides = ("encoder",)
    return [f"--{word.replace('_', '-')}" for word in _sizes(sides, widths)]


def write_clients(folder: Path, path: Path) -> None:
    """An executable for each of COMMANDS in ``folder``, which asks the server at the socket ``path``."""
    folder.mkdir()
    for name in COMMANDS:
        client = folder / name
        client.write_text(_CLIENT.format(python=sys.executable, socket=str(path)))
        client.chmod(0o755)


def start(path: Path) -> subprocess.Popen[bytes]:
    """The server as a process; returns when it listens."""
    line = [sys.executable, "-m", "tests.docs.server", str(path)]
    process = subprocess.Popen(line, cwd=REPO, env=command_env(), stdin=subprocess.DEVNULL)
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the server of commands ended with status {process.returncode}")
        time.sleep(0.05)
    return process


def main(path: str) -> None:
    forked.import_most(*MORE)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for the processes that serve
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path + ".new")
        listener.listen()
        os.rename(path + ".new", path)
        while True:
            client, _ = listener.accept()
            if not os.fork():
                listener.close()
                _serve(client)
            client.close()


def _serve(client: socket.socket) -> NoReturn:
    """In a process of its own, which waits for the one that becomes the command."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    header, files, _, _ = socket.recv_fds(client, 8, 3)
    data = b""
    while len(data) < int.from_bytes(header, "big"):
        data += client.recv(1 << 20)
    name, arguments, folder, env = json.loads(data)
    code = forked.status(forked.start([str(BIN / name), *shortened(name, arguments)], folder, env, files))
    client.sendall(str(code if code >= 0 else 128 - code).encode())
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1])
