"""Methods and functions of fairseq with something of ours around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: Kept at what is wrapped: the names of what is around it.
_NAMES = "mhe_wrapped_by"


def wrap(owner: Any, name: str, wrapper: Callable[..., Callable[..., Any]]) -> None:
    """Replace a method of a class, or a function of a module, by what ``wrapper`` makes of it; with the same
    wrapper a second time, leave it."""
    method = getattr(owner, name)
    names: tuple[str, ...] = getattr(method, _NAMES, ())
    own = f"{wrapper.__module__}.{wrapper.__qualname__}"
    if own not in names:
        wrapped = functools.wraps(method)(wrapper(method))
        setattr(wrapped, _NAMES, (*names, own))
        setattr(owner, name, wrapped)
