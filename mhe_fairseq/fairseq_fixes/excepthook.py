"""Our own errors end a command with their one sentence, not with a page of traceback.

No fault of fairseq's: Python prints a traceback. It stays.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import threading
from types import TracebackType
from typing import NoReturn

import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessRaisedException

from mhe_fairseq.errors import MHEError

#: What gloo and NCCL say where the other end of a connection is gone.
_LOST = re.compile(
    r"connection (reset|closed) by (remote )?peer|broken pipe|remote process exited", re.IGNORECASE
)


def install() -> None:
    """Have uncaught ``MHEError`` printed as ``mhe_fairseq: error: sentence``. All others, and all of them
    with ``MHE_TRACEBACK=1``, go to the hook that was there."""
    before = sys.excepthook
    if getattr(before, "mhe_hook", False):
        return

    def hook(kind: type[BaseException], value: BaseException, trace: TracebackType | None) -> None:
        error = _ours(value)
        if error is None or os.environ.get("MHE_TRACEBACK"):
            before(kind, value, trace)
        else:
            # Not sys.stderr: of a rank, torch collects what its hook's predecessor says, to print it after,
            # and there may be no after.
            print(f"mhe_fairseq: error: {error}", file=sys.__stderr__, flush=True)
            if threading.active_count() > 1:
                _leave()

    hook.mhe_hook = True  # type: ignore[attr-defined]
    sys.excepthook = hook


def _leave() -> NoReturn:
    """Exit with status 1 while fairseq's data loading thread runs: the interpreter would pull the thread's
    torch from under it, and end in an abort after our sentence."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _ours(value: BaseException | None) -> MHEError | None:
    """fairseq's trainer raises an opaque exception of its own over ours: look below it. And of what a spawned
    rank raised (one for every GPU) only the traceback's text arrives here."""
    while value is not None:
        if isinstance(value, MHEError):
            return value
        lost = _LOST.search(str(value))
        if lost and isinstance(value, RuntimeError) and dist.is_initialized():
            return MHEError(
                f"the connection to another rank was lost ({lost.group()}), which has ended or was killed: "
                "see what it said last. The same commands again continue from the last checkpoint"
            )
        if isinstance(value, ProcessRaisedException):
            _, ours, said = str(value).partition(f"{MHEError.__module__}.{MHEError.__qualname__}: ")
            return MHEError(said.partition("\n")[0]) if ours else None
        value = value.__cause__ or value.__context__
    return None
