"""Commands for tests, each in a process forked from one that has imported fairseq: seconds less each.

A process of the tests starts one server, and puts clients of it first on the PATH of what it runs:
``fairseq-train``, ``mhe``, ``python`` and so on. So what recipes, studies and shell blocks start is forked,
too; ``sys.executable`` is a Python that is not. A client
sends its arguments, folder, environment and open files; it passes signals on, and when it is killed its
command is. In an environment in which Python, torch or Triton would begin in another way, the client becomes
the command itself. Trainings that say they want this checkout's plugin, and ``mhe``, are forked from a second
process, which has imported it, too. (In other commands what it does depends on what was imported before it.)
"""

from __future__ import annotations

import atexit
import json
import multiprocessing
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NoReturn

from scripts.common import forked

REPO = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent

COMMANDS = (
    "fairseq-train",
    "fairseq-generate",
    "fairseq-interactive",
    "fairseq-validate",
    "fairseq-eval-lm",
    "fairseq-preprocess",
    "fairseq-hydra-train",
    "fairseq-score",
    "mhe",
)

#: ``python`` is forked with a script, a module or code; with other options it is itself.
_CLIENTS = (*COMMANDS, "python", "torchrun")

#: What commands import besides ``forked.MODULES``.
MORE = ("fairseq.tasks", "sacrebleu")

#: Variables that are read when Python, torch or Triton begin. How threads wait is nothing to one thread.
_EARLY = ("PYTHON", "OMP_NUM", "MKL_", "TRITON", "CUDA", "TORCH", "LD_")
#: Of these, what forked commands obey all the same, what torchrun tells its ranks, and what torch's compiler
#: puts into the environment of the tests when it is first used.
_LATE = ("PYTHONWARNINGS", "TORCHELASTIC", "TORCH_NCCL", "TORCHINDUCTOR")

#: Of the second server: the end of its socket's name, and the file with its number.
_WITH_PLUGIN, _SECOND = "-with-plugin", "second"

_CLIENT = """#!{python} -SI
import json, os, signal, socket, sys, time
name = os.path.basename(sys.argv[0])
early = {{
    key: value
    for key, value in os.environ.items()
    if key.startswith({early!r}) and not key.startswith({late!r})
}}
given = {given!r}
if early.get("PYTHONPATH") == "":
    # What has been imported is not of these paths, and what will be is not found there.
    early["PYTHONPATH"] = given["PYTHONPATH"]
line = [os.path.join({bin!r}, name), *sys.argv[1:]]
arguments = sys.argv[1:]
forks = name != "python" or arguments and (arguments[0][0] != "-" or arguments[0] in ("-m", "-c"))
if early != given or not forks:
    os.execv(line[0], line)
path = {socket!r}
wanted = name == "mhe"
if name == "fairseq-train" and "--user-dir" in arguments[:-1]:
    wanted = os.path.abspath(arguments[arguments.index("--user-dir") + 1]) == {plugin!r}
# What the plugin reads of the environment, it reads when it is imported.
if wanted and not any(key.startswith("MHE_") for key in os.environ):
    path += {with_plugin!r}
server = socket.socket(socket.AF_UNIX)
until = time.monotonic() + 120
while True:
    try:
        server.connect(path)
        break
    except OSError:
        if time.monotonic() > until:
            os.execv(line[0], line)
        time.sleep(0.05)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: server.send(bytes([number])))
request = json.dumps([line, os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
server.sendall(request)
status = int(server.recv(16) or b"1")
if status < 0:
    signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
sys.exit(status)
"""

#: Of each process of the tests: the folder of its server's socket and clients, and the server.
_folder: Path | None = None
_server: subprocess.Popen[bytes] | None = None


def clients(env: Mapping[str, str]) -> Path:
    """The folder of the clients; the first call starts their server, in the environment ``env``."""
    global _folder, _server
    if _folder is None:
        _folder = Path(tempfile.mkdtemp(prefix="commands-"))
        # Tests of kernels set it for themselves.
        env = {key: value for key, value in env.items() if key != "TRITON_INTERPRET"}
        _server = start(_folder, "tests.command_forks", env)
        atexit.register(_end, _server, _folder, os.getpid())
    return _folder / "bin"


def settle(seconds: float = 60) -> None:
    """Wait until every command has ended: when its client is killed, a command is a moment later."""
    assert _server is not None and _folder is not None
    second = int((_folder / _SECOND).read_text())
    until = time.monotonic() + seconds
    while {*_children(_server.pid), *_children(second)} - {second}:
        assert time.monotonic() < until, "commands outlive their killed clients"
        time.sleep(0.01)


def _children(process: int) -> set[int]:
    return set(map(int, Path(f"/proc/{process}/task/{process}/children").read_text().split()))


def _end(server: subprocess.Popen[bytes], folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def start(folder: Path, module: str, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start ``python -m module SOCKET``, which is to call ``serve``, and write its clients to ``folder``/bin.

    Does not wait until it listens: clients do.
    """
    path = folder / "socket"
    (folder / "bin").mkdir()
    source = _CLIENT.format(
        python=sys.executable,
        early=_EARLY,
        late=_LATE,
        bin=str(BIN),
        given={
            key: value for key, value in env.items() if key.startswith(_EARLY) and not key.startswith(_LATE)
        },
        socket=str(path),
        plugin=str(REPO / "mhe_fairseq"),
        with_plugin=_WITH_PLUGIN,
    )
    for name in _CLIENTS:
        client = folder / "bin" / name
        client.write_text(source)
        client.chmod(0o755)
    line = [sys.executable, "-m", module, str(path)]
    return subprocess.Popen(line, cwd=REPO, env=dict(env), stdin=subprocess.DEVNULL)


def cut_short(line: list[str]) -> list[str]:
    """A command that translates to some length: fairseq's own limit is 200 tokens, and models that have seen
    a few batches know no end."""
    if Path(line[0]).name in ("fairseq-generate", "fairseq-interactive") and "--max-len-b" not in line:
        return [*line, "--max-len-b", "40"]
    return line


def serve(path: str, changed: Callable[[list[str]], list[str]] = cut_short) -> NoReturn:
    """Fork commands for clients, for ever.

    Args:
        path: the socket.
        changed: from a command line, a script and its arguments, to the one that is run.
    """
    forked.import_most(*MORE)
    _fork_what_scripts_spawn()
    # These import fairseq, which only now has been imported without setting logging up.
    import fairseq.utils

    from scripts.common import faster_hydra

    faster_hydra.install(Path(path).with_name("configurations"))
    forked.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # no one waits for the keepers
    first, with_plugin, parent = _listen(path), _listen(path + _WITH_PLUGIN), os.getpid()
    if second := os.fork():
        Path(path).with_name(_SECOND).write_text(str(second))
        with_plugin.close()
        _accept(first, os.getppid(), changed)
    first.close()
    # Only here: a command that does not name the plugin must not find it.
    fairseq.utils.import_user_module(Namespace(user_dir=str(REPO / "mhe_fairseq")))
    forked.freeze()
    _accept(with_plugin, parent, changed)


def _listen(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(64)
    listener.settimeout(5)
    os.rename(path + ".new", path)
    return listener


def _accept(listener: socket.socket, parent: int, changed: Callable[[list[str]], list[str]]) -> NoReturn:
    while os.getppid() == parent:  # killed tests leave nothing behind
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        if not os.fork():
            listener.close()
            _keep(client, changed)
        client.close()
    sys.exit()


def _fork_what_scripts_spawn() -> None:
    """It would import anew all that is here. The ranks of a training, which torch spawns, are spawned."""
    original = multiprocessing.get_context

    def context(way: str | None = None) -> multiprocessing.context.BaseContext:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        return original("fork" if way == "spawn" and not caller.startswith("torch.") else way)

    multiprocessing.get_context = context  # type: ignore[assignment]


def _keep(client: socket.socket, changed: Callable[[list[str]], list[str]]) -> NoReturn:
    """In a process of its own: start a command, pass signals to it, tell its status."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    client.settimeout(None)
    header, files, _, _ = socket.recv_fds(client, 8, 3)
    data = b""
    while len(data) < int.from_bytes(header, "big"):
        data += client.recv(1 << 20)
    line, folder, env = json.loads(data)
    line = changed(line)
    if Path(line[0]).name == "python":
        del line[0]
    child = forked.start(line, folder, env, files, own_session=True)
    ended = os.pidfd_open(child)
    said = client.fileno()
    while ended not in select.select([said, ended], [], [])[0]:
        numbers = client.recv(16)
        if not numbers:
            # The client was killed, and so is what it stands for.
            os.killpg(child, signal.SIGKILL)
            forked.status(child)
            os._exit(0)
        for number in numbers:
            os.kill(child, number)
    try:
        client.sendall(str(forked.status(child)).encode())
    except OSError:
        pass
    os._exit(0)


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    """Until a server listens."""
    while not path.exists():
        if process.poll() is not None:
            raise RuntimeError(f"the server of commands ended with status {process.returncode}")
        time.sleep(0.05)


if __name__ == "__main__":
    serve(sys.argv[1])
