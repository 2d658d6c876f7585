"""Triton's interpreter, TRITON_INTERPRET=1, without what takes almost half of its time.

Each call of a function inside a kernel replaces the functions of ``triton.language`` by the interpreter's
again, although the kernel's launch has replaced them.
"""

from __future__ import annotations

import importlib.util
from typing import Any

_NEEDED = {"_patch_lang", "GridExecutor", "InterpretedFunction"}


def install() -> None:
    """Replace them once a launch. A version of Triton that does this in other ways is left alone."""
    if importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    if not _NEEDED <= vars(interpreter).keys() or hasattr(interpreter._patch_lang, "once"):
        return
    patch, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[int] = set()

    def patch_once(fn: Any) -> Any:
        seen = set(map(id, fn.__globals__.values()))
        modules = {id(each) for each in (tl, tl.core)} & seen
        if modules <= replaced:
            return None  # nobody reads it but a launch
        replaced.update(modules)
        return patch(fn)

    def launch_anew(*args: Any, **kwargs: Any) -> Any:
        replaced.clear()
        return launch(*args, **kwargs)

    patch_once.once = True  # type: ignore[attr-defined]
    interpreter._patch_lang = patch_once
    interpreter.GridExecutor.__call__ = launch_anew
