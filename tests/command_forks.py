"""fairseq's commands and ``mhe`` in processes forked from one that has imported fairseq: seconds less each.

A forked process has what a fresh one has: the command's script is run as ``__main__``, with its own
environment, folder, arguments and output. The plugin is not imported before, nor are the commands' own
modules.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import logging
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

#: Most of what fairseq's commands import. torch's optimisers import its compiler.
_MODULES = (
    "fairseq.options",
    "fairseq.trainer",
    "fairseq.sequence_generator",
    "fairseq.checkpoint_utils",
    "fairseq.tasks",
    "torch._dynamo",
    "sacrebleu",
)

#: Variables that are read when Python, torch or Triton begin.
_EARLY = ("PYTHON", "OMP_", "MKL_", "TRITON", "CUDA", "TORCH", "LD_")

#: Handlers and level of the root logger after fairseq was imported.
_set_up: tuple[list[logging.Handler], int] = ([], logging.WARNING)

_server: subprocess.Popen[str] | None = None


def serves(line: Sequence[str], bin: Path, added: Mapping[str, str] | None) -> bool:
    """Whether a command can be forked: a script of this interpreter's, in the usual environment."""
    script = Path(line[0])
    name = script.name
    is_ours = script.parent == bin and (name.startswith("fairseq-") or name == "mhe")
    return is_ours and hasattr(os, "fork") and not any(key.startswith(_EARLY) for key in added or ())


def run(
    line: Sequence[str], cwd: str, env: Mapping[str, str], stdin: str | None, timeout: float
) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run``, which captures text.

    Raises:
        subprocess.TimeoutExpired: after ``timeout`` seconds.
    """
    server = _started(env)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / name for name in ("in", "out", "err")]
        paths[0].write_text(stdin or "", encoding="utf-8")
        request = {
            "line": list(line), "cwd": cwd, "env": dict(env), "timeout": timeout, "files": [*map(str, paths)],
        }  # fmt: skip
        assert server.stdin is not None and server.stdout is not None
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        status = json.loads(server.stdout.readline())
        out, err = (path.read_text(encoding="utf-8", errors="replace") for path in paths[1:])
    if status is None:
        raise subprocess.TimeoutExpired(list(line), timeout, out, err)
    return subprocess.CompletedProcess(list(line), status, out, err)


def _started(env: Mapping[str, str]) -> subprocess.Popen[str]:
    """The process that forks, one for each process of the tests."""
    global _server
    if _server is None or _server.poll() is not None:
        here = Path(__file__).resolve()
        _server = subprocess.Popen(
            [sys.executable, str(here)],
            cwd=here.parent,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(_server.kill)
    return _server


def import_most() -> None:
    """What a process does before it forks commands."""
    logging.disable(logging.CRITICAL)
    for module in _MODULES:
        importlib.import_module(module)
    logging.disable(logging.NOTSET)
    global _set_up
    _set_up = list(logging.root.handlers), logging.root.level
    logging.root.handlers.clear()
    logging.root.setLevel(logging.WARNING)
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all of the memory that it shares


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    # What is said by an import is no answer.
    os.dup2(2, 1)
    import_most()
    for text in sys.stdin:
        request = json.loads(text)
        child = os.fork()
        if not child:
            _become(request)
        print(json.dumps(_waited(child, request["timeout"])), file=answers)


def _waited(child: int, timeout: float) -> int | None:
    """A process's status as ``subprocess`` tells it; None: it took too long, and is no more."""

    def late(*_: object) -> None:
        os.killpg(child, signal.SIGKILL)
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    except TimeoutError:
        os.waitpid(child, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _become(request: dict[str, Any]) -> NoReturn:
    """Run the command, and end as it ends."""
    os.setsid()
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for number, (path, flag) in enumerate(zip(request["files"], flags, strict=True)):
        os.dup2(os.open(path, flag, 0o600), number)
    run_as(request["line"], request["cwd"], request["env"])


def run_as(line: Sequence[str], cwd: str, env: Mapping[str, str]) -> NoReturn:
    """Be a command, from a script of ``line``'s first word to the end of the process."""
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    # A fresh process draws other numbers, too.
    random.seed()
    script = line[0]
    if Path(script).name != "fairseq-train":
        # That one sets up logging before it imports fairseq, whose import does it for the others.
        logging.root.handlers[:], logging.root.level = _set_up
    sys.argv = list(line)
    sys.path[0] = str(Path(script).parent)
    status = 0
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    _end(status)


def _end(status: int) -> NoReturn:
    """As Python ends, but that nothing is taken apart: memory that is shared would be copied for it."""
    for step in (threading._shutdown, atexit._run_exitfuncs, sys.stdout.flush, sys.stderr.flush):  # type: ignore[attr-defined]
        try:
            step()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            status = status or 1
    os._exit(status)


if __name__ == "__main__":
    _serve()
