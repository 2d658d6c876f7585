"""Methods of fairseq's classes with something of ours around them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

#: Kept at a method: the names of what is around it.
_NAMES = "mhe_wrapped_by"


def wrap(kind: type, name: str, wrapper: Callable[..., Callable[..., Any]]) -> None:
    """Replace a class's method by what ``wrapper`` makes of it; with the same wrapper a second time, leave
    it."""
    method = getattr(kind, name)
    names: tuple[str, ...] = getattr(method, _NAMES, ())
    own = f"{wrapper.__module__}.{wrapper.__qualname__}"
    if own not in names:
        wrapped = functools.wraps(method)(wrapper(method))
        setattr(wrapped, _NAMES, (*names, own))
        setattr(kind, name, wrapped)
