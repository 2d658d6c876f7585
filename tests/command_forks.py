"""fairseq's commands and ``mhe`` for tests, in processes forked from one that has imported fairseq."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from scripts.common import forked

#: What commands import besides ``forked.MODULES``.
MORE = ("fairseq.tasks", "sacrebleu")

#: Variables that are read when Python, torch or Triton begin.
_EARLY = ("PYTHON", "OMP_", "MKL_", "TRITON", "CUDA", "TORCH", "LD_")

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
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.command_forks"],
            cwd=Path(__file__).resolve().parent.parent,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        atexit.register(_server.kill)
    return _server


def _serve() -> None:
    answers = forked.for_answers()
    forked.import_most(*MORE)
    flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
    for text in sys.stdin:
        request = json.loads(text)
        files = [os.open(path, flag, 0o600) for path, flag in zip(request["files"], flags, strict=True)]
        child = forked.start(request["line"], request["cwd"], request["env"], files, own_session=True)
        print(json.dumps(_waited(child, request["timeout"])), file=answers)


def _waited(child: int, timeout: float) -> int | None:
    """A process's status; None: it took too long, and is no more."""

    def late(*_: object) -> None:
        os.killpg(child, signal.SIGKILL)
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, timeout)
    try:
        return forked.status(child)
    except TimeoutError:
        os.waitpid(child, 0)
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


if __name__ == "__main__":
    _serve()
