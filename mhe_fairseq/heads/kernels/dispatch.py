"""Whether kernels serve a head's tensors, said once in the log."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from importlib import metadata
from typing import TypeVar

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError

logger = logging.getLogger(__name__)

#: "0": plain torch; "1": kernels, or an error that tells what is missing; unset: kernels where they can be.
SWITCH = "MHE_KERNELS"

#: The oldest triton that the kernels compile with; torch 2.6 brings 3.2.
OLDEST = (3, 2)

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

_said: set[str] = set()
_ready: set[object] = set()
_broken: set[object] = set()
_pretending = False

Result = TypeVar("Result")


def serve(*tensors: Tensor) -> bool:
    """Whether kernels serve a loss of these tensors: features and weights, on one device.

    Raises:
        MHEError: ``MHE_KERNELS=1`` and something is missing, or another value than 0 and 1.
    """
    if _pretending:
        return all(each.dtype in _DTYPES for each in tensors)
    lacking = _lacking(tensors[0].device)
    switch = os.environ.get(SWITCH, "")
    if switch == "0":
        say("mhe: the output layer runs in plain torch (MHE_KERNELS=0)")
        return False
    if switch not in ("", "1"):
        raise MHEError(f"{SWITCH} is 0 (plain torch), 1 (kernels only) or unset; got {switch!r}")
    if lacking is not None:
        if switch == "1":
            raise MHEError(
                f"{SWITCH}=1 asks for kernels of the output layer, and {lacking}; unset it for plain torch"
            )
        say(f"mhe: the output layer runs in plain torch ({lacking})")
        return False
    if any(each.dtype not in _DTYPES for each in tensors):
        # Not said: a check in float64 is somebody's test, not a run.
        return False
    say(f"mhe: the output layer runs in kernels, triton {triton_version()}")
    return True


def interpreting() -> bool:
    """Kernels run in Triton's interpreter, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


@contextmanager
def pretend() -> Iterator[None]:
    """Kernels serve tensors of any device within, whatever ``MHE_KERNELS`` says, and nothing is rehearsed.

    For reading what would be launched, on a machine without a GPU: what is launched must not run, so that
    ``launch.watched`` is needed beside it.
    """
    global _pretending
    before, _pretending = _pretending, True
    try:
        yield
    finally:
        _pretending = before


def attempt(key: object, rehearse: Callable[[], object], run: Callable[[], Result]) -> Result | None:
    """``run``, after a rehearsal the first time that ``key`` is seen; None where the rehearsal failed once.

    A rehearsal is a step of one token, forward and backward, so that every kernel is compiled before the
    first real step: one that does not compile on this GPU then costs a line in the log, not the training.
    Running out of memory is no such failure and is raised as ever.
    """
    if _pretending:
        return run()
    if key in _broken:
        return None
    # Nothing is rehearsed inside a transform of torch.func: there is no backward pass to call there.
    if key not in _ready and torch._C._functorch.peek_interpreter_stack() is None:
        if not interpreting():
            say("mhe: compiling kernels for the output layer (a few seconds each, kept for the next run)")
        try:
            rehearse()
        except torch.cuda.OutOfMemoryError:
            raise
        except Exception as error:  # of the compiler, ptxas or the driver: there is no common class
            _broken.add(key)
            first = str(error).strip().partition("\n")[0]
            say(
                "mhe: a kernel of the output layer does not work here, so plain torch runs "
                f"({type(error).__name__}: {first})",
                logging.WARNING,
            )
            return None
        _ready.add(key)
    return run()


def on(device: torch.device) -> AbstractContextManager[object]:
    """Triton launches on the current device, which need not be the tensors'; in a backward pass it is."""
    return torch.cuda.device(device) if device.type == "cuda" and not _pretending else nullcontext()


def kind_of(tensor: Tensor) -> tuple[object, ...]:
    """What of a tensor decides which kernels are compiled, for the key of ``attempt``."""
    return (tensor.device, tensor.dtype, tensor.shape[1:], tensor.requires_grad)


def leaf(tensor: Tensor) -> Tensor:
    """The same memory, outside the graph: for a rehearsal."""
    return tensor.detach().requires_grad_(tensor.requires_grad)


def differentiate(losses: Sequence[Tensor | None], inputs: Sequence[Tensor]) -> None:
    """A rehearsal's backward pass, where there is one."""
    wanted = [each for each in inputs if each.requires_grad]
    if torch.is_grad_enabled() and wanted:
        total = torch.stack([each.sum() for each in losses if each is not None]).sum()
        torch.autograd.grad(total, wanted, allow_unused=True)


def say(message: str, level: int = logging.INFO) -> None:
    """Log a line once a process."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


def _lacking(device: torch.device) -> str | None:
    """What is missing for kernels on this device, None: nothing."""
    if device.type != "cuda" and not (device.type == "cpu" and interpreting()):
        return f"the features are on the {'CPU' if device.type == 'cpu' else device.type}, not on a CUDA GPU"
    version = triton_version()
    if version is None:
        return "triton is not installed"
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        return f"triton {version} is older than {OLDEST[0]}.{OLDEST[1]}"
    return None


@cache
def triton_version() -> str | None:
    """Of the triton installed, None: there is none."""
    return metadata.version("triton") if importlib.util.find_spec("triton") is not None else None
