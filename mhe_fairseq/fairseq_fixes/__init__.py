"""Repairs of fairseq, one module each. A module's docstring says what is wrong, how it is mended, and when
the repair can go; its ``install`` takes the place of fairseq's functions, and may be called twice."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import Any

#: In the order in which they are installed; the first is for what the others refuse.
FIXES = (
    "excepthook",
    "attention",
    "broadcast",
    "checkpoints",
    "cpu_ranks",
    "ema",
    "fp16_on_cpu",
    "host_reads",
    "loading",
    "masked_dictionaries",
    "misfit",
    "numpy_names",
    "other_languages",
    "precision",
    "pretrained_bart",
    "saving",
    "tracing",
    "validation",
)


#: Kept at what is wrapped: the names of what is around it.
_NAMES = "mhe_wrapped_by"


def wrap(owner: Any, name: str, wrapper: Callable[..., Callable[..., Any]]) -> None:
    """Replace a method of a class, or a function of a module, by what ``wrapper`` makes of it; with the same
    wrapper a second time, leave it. A class method or a static one stays what it is."""
    method, kept = getattr(owner, name), None
    held = vars(owner).get(name)
    if isinstance(held, (classmethod, staticmethod)):
        method, kept = held.__func__, type(held)
    names: tuple[str, ...] = getattr(method, _NAMES, ())
    own = f"{wrapper.__module__}.{wrapper.__qualname__}"
    if own not in names:
        wrapped = functools.wraps(method)(wrapper(method))
        setattr(wrapped, _NAMES, (*names, own))
        setattr(owner, name, wrapped if kept is None else kept(wrapped))


def install() -> None:
    """Install them all.

    Raises:
        MHEError: an environment variable of one of them has a value that it does not know.
    """
    for name in FIXES:
        importlib.import_module(f"{__name__}.{name}").install()
