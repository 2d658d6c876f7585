"""Runs Python modules as commands, each in a process forked from this one, which has imported fairseq.

    python -m scripts.gpu.command_server cuda|cpu

Reads a JSON object a line: ``module``, its ``arguments``, ``env`` (variables to set), ``log`` (a file for
all that it says); answers with its exit ``status`` and ``seconds``. The first line that it writes, before it
reads, is ``{"missing": TEXT, "forks": BOOL}``: "" where all is there, and whether commands are forked.

The plugin is not imported here: what it reads of its environment, it reads in each command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from scripts.common import faster_interpreter, forked


def main(device: str) -> None:
    answers = forked.for_answers()
    # Without this, asking whether there is a GPU makes CUDA useless in forked processes.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    missing = _missing()
    forks = not missing and (device == "cpu" or _forks_use_cuda())
    print(json.dumps({"missing": missing, "forks": forks}), file=answers)
    if missing:
        return
    for line in sys.stdin:
        request = json.loads(line)
        begin = time.monotonic()
        status = _forked(request) if forks else _started(request)
        print(json.dumps({"status": status, "seconds": time.monotonic() - begin}), file=answers)


def _missing() -> str:
    try:
        forked.import_most()
        # Imports fairseq, which only now has been imported without setting logging up.
        from scripts.common import faster_hydra

        faster_hydra.install(Path("configurations"))
        forked.freeze()
        if os.environ.get("TRITON_INTERPRET"):
            faster_interpreter.install()
    except Exception as error:  # an old fairseq on a new Python fails in many ways
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "fairseq":
            return "fairseq is not installed"
        first = str(error).strip().partition("\n")[0]
        return f"fairseq cannot be imported ({type(error).__name__}: {first})"
    return ""


def _forks_use_cuda() -> bool:
    """Tried once: a driver that this process has woken up is of no use to the processes forked from it."""
    child = os.fork()
    if not child:
        status = 1
        try:
            import torch

            torch.zeros(1, device="cuda")
            status = 0
        finally:
            os._exit(status)
    return os.waitpid(child, 0)[1] == 0


def _forked(request: dict[str, Any]) -> int:
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    line = ["-m", request["module"], *request["arguments"]]
    return forked.status(
        forked.start(line, os.getcwd(), {**os.environ, **request["env"]}, [nothing, log, log])
    )


def _started(request: dict[str, Any]) -> int:
    with open(request["log"], "ab") as log:
        command = [sys.executable, "-m", request["module"], *request["arguments"]]
        env = {**os.environ, **request["env"]}
        return subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode


if __name__ == "__main__":
    main(sys.argv[1])
