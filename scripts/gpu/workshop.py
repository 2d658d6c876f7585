"""Commands that a check runs, and a temporary folder for what they read and write; all gone at the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent.parent

#: Each command says what it wants of these; a user's own must not decide.
_SWITCHES = ("MHE_KERNELS", "MHE_CUDNN_ATTENTION")

Made = TypeVar("Made")


class NotHere(Exception):
    """Something that a check needs is not installed: it is not reached, which is no failure."""


@dataclass(frozen=True)
class Ran:
    """A command that has ended.

    Attributes:
        status: its exit status.
        said: all that it printed.
        seconds: that it took.
    """

    status: int
    said: str
    seconds: float

    @property
    def trouble(self) -> str:
        """What went wrong: the last line that names an error, or else the last; "" if all went well."""
        if not self.status:
            return ""
        lines = [line.strip() for line in self.said.splitlines() if line.strip()]
        # An interpreter that ends may have more to say, of what nobody asked.
        named = [line for line in lines if re.search(r"^\w[\w.]*(Error|Exception)\b|\berror: ", line)]
        last = (named or lines or ["it said nothing"])[-1]
        return f"exit status {self.status}: {last[:300]}"


class Workshop:
    """Runs Python modules as commands, one at a time, in processes of their own.

    They are forked from a process that has imported torch and fairseq, which takes longer than most of what
    they do; where a forked process cannot use the GPU they are started anew (``command_server.py``).

    Attributes:
        way: how commands are run, "" where none was yet.
    """

    way = ""

    def __init__(self) -> None:
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._made: dict[Hashable, Any] = {}
        self._server: subprocess.Popen[str] | None = None
        self._count = 0

    def __enter__(self) -> Workshop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()
        self._folder, self._made = None, {}

    @property
    def folder(self) -> Path:
        """The temporary folder."""
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="gpu-check-")
        return Path(self._folder.name)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """What ``make`` returned the first time that this was asked for."""
        if key not in self._made:
            self._made[key] = make()
        made: Made = self._made[key]
        return made

    def open(self, is_cuda: bool) -> None:
        """Be ready to run commands.

        Raises:
            NotHere: fairseq is not installed.
        """
        if self._server is not None:
            return
        env = {name: value for name, value in os.environ.items() if name not in _SWITCHES}
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH", "")]))
        command = [sys.executable, "-m", "scripts.gpu.command_server", "cuda" if is_cuda else "cpu"]
        self._server = subprocess.Popen(
            command, env=env, cwd=self.folder, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        answer = self._answer()
        self.way = "forked" if answer["forks"] else "started anew"
        if answer["missing"]:
            self._stop()
            raise NotHere(f"{answer['missing']}: pip install ve-fairseq==0.12.3 for {sys.executable}")

    def run(self, module: str, arguments: Sequence[str], env: Mapping[str, str] | None = None) -> Ran:
        """As ``python -m module arguments``, in the temporary folder, with these variables set."""
        assert self._server is not None, "open it first"
        self._count += 1
        log = self.folder / f"command{self._count}.log"
        request = {"module": module, "arguments": list(arguments), "env": dict(env or {}), "log": str(log)}
        _end(self._server.stdin).write(json.dumps(request) + "\n")
        _end(self._server.stdin).flush()
        answer = self._answer()
        said = log.read_text(encoding="utf-8", errors="replace")
        log.unlink()
        return Ran(answer["status"], said, answer["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._server is not None
        try:
            line = _end(self._server.stdout).readline()
            if not line:
                raise RuntimeError("the process that starts commands ended")
            answer: dict[str, Any] = json.loads(line)
        except BaseException:
            # Out of time, or interrupted: the command must not run on beside the next one.
            self._stop()
            raise
        return answer

    def _stop(self) -> None:
        """End the server, and the command that it runs, if any."""
        server, self._server = self._server, None
        if server is None:
            return
        # Of a session of its own, so that what a command started goes with it.
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
        _end(server.stdin).close()
        _end(server.stdout).close()


def _end(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
