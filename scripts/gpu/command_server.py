"""Runs Python modules as commands, each in a process forked from this one, which has imported fairseq.

    python -m scripts.gpu.command_server cuda|cpu

Reads a JSON object a line: ``module``, its ``arguments``, ``env`` (variables to set), ``log`` (a file for
all that it says); answers with its exit ``status`` and ``seconds``. The first line that it writes, before it
reads, is ``{"missing": TEXT, "forks": BOOL}``: "" where all is there, and whether commands are forked.

The plugin is not imported here: what it reads of its environment, it reads in each command.
"""

from __future__ import annotations

import gc
import importlib
import json
import logging
import os
import runpy
import subprocess
import sys
import time
import warnings
from typing import Any

#: Most of what fairseq's commands import; the commands' own modules must still be new to a process. torch's
#: optimisers import its compiler.
_MODULES = (
    "fairseq.options",
    "fairseq.trainer",
    "fairseq.sequence_generator",
    "fairseq.checkpoint_utils",
    "torch._dynamo",
)


def main(device: str) -> None:
    # What is printed by an import is no answer.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # Without this, asking whether there is a GPU makes CUDA useless in forked processes.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    missing = _missing()
    gc.collect()
    gc.freeze()  # a collection in a forked process would copy all of the memory that it shares
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
    warnings.simplefilter("ignore")
    # As fairseq's commands do before they import fairseq, which logs on import: the first one to ask decides.
    logging.basicConfig(
        format="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
        datefmt="%Y-%m-%d %H:%M:%S",
        level=logging.INFO,
        stream=sys.stdout,
    )
    try:
        for module in _MODULES:
            importlib.import_module(module)
    except Exception as error:  # an old fairseq on a new Python fails in many ways
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "fairseq":
            return "fairseq is not installed"
        first = str(error).strip().partition("\n")[0]
        return f"fairseq cannot be imported ({type(error).__name__}: {first})"
    finally:
        warnings.resetwarnings()
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
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    nothing = os.open(os.devnull, os.O_RDONLY)
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    os.environ.update(request["env"])
    sys.argv = [request["module"], *request["arguments"]]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
    sys.exit()


def _started(request: dict[str, Any]) -> int:
    with open(request["log"], "ab") as log:
        command = [sys.executable, "-m", request["module"], *request["arguments"]]
        env = {**os.environ, **request["env"]}
        return subprocess.run(
            command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode


if __name__ == "__main__":
    main(sys.argv[1])
