"""Triton's interpreter, TRITON_INTERPRET=1, without what takes more than half of its time.

Each call of a function inside a kernel replaces the functions of ``triton.language`` by the interpreter's
again, although the kernel's launch has replaced them. And each operator checks the shape of its result, which
is one of a few, compares those of its operands size by size, and looks the type of its numbers up in a table
that it builds for that. One of integers is computed again in 64 bits, for an assertion that is then left out.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

_BROADCAST, _OVERFLOW = "broadcast_impl_value", "binary_op_sanitize_overflow_impl"
_LAUNCHES = {"_patch_lang", "GridExecutor", "InterpretedFunction"}


def install() -> None:
    """Replace and check them once. A version of Triton that does this in other ways is left alone."""
    if importlib.util.find_spec("triton") is None:
        return
    import triton.language as tl
    from triton.runtime import interpreter

    if _LAUNCHES <= vars(interpreter).keys() and not hasattr(interpreter._patch_lang, "once"):
        _replace_once_a_launch(tl, interpreter)
    if hasattr(tl.block_type, "once") or not hasattr(interpreter, "_get_np_dtype"):
        return
    _remember_shapes(tl.core)
    semantic = getattr(getattr(tl, "semantic", None), "TritonSemantic", None)
    if hasattr(tl.block_type, "once") and hasattr(semantic, _BROADCAST):
        _remember_broadcasts(tl, semantic)
    if hasattr(semantic, _OVERFLOW):
        _look_for_overflow_when_it_is_told(semantic)
    interpreter._get_np_dtype = _remembered_types(tl, interpreter._get_np_dtype)


def _replace_once_a_launch(tl: Any, interpreter: Any) -> None:
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


def _remember_shapes(core: Any) -> None:
    """Those of types and tensors: what they hold is never changed."""
    block_init, tensor_init = core.block_type.__init__, core.tensor.__init__
    blocks: dict[tuple[int, ...], tuple[Any, int, str]] = {}
    tensors: dict[tuple[int, ...], tuple[Any, Any]] = {}

    def new_block(self: Any, element_ty: Any, shape: Any) -> None:
        sizes = tuple(getattr(size, "value", size) for size in shape)
        found = blocks.get(sizes)
        if found is None:
            block_init(self, element_ty, shape)
            blocks[sizes] = self.shape, self.numel, str(self.shape)
            return
        self.element_ty = element_ty
        self.shape, self.numel, text = found
        self.name = f"<{text}, {element_ty}>"

    def new_tensor(self: Any, handle: Any, type: Any) -> None:
        sizes = tuple(type.shape) if type.is_block() else ()
        found = tensors.get(sizes)
        if found is None:
            tensor_init(self, handle, type)
            tensors[sizes] = self.shape, self.numel
            return
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = found

    def made(block_by: Callable[..., None], tensor_by: Callable[..., None]) -> list[object]:
        block, value = core.block_type.__new__(core.block_type), core.tensor.__new__(core.tensor)
        block_by(block, core.float32, [2, 4])
        tensor_by(value, 0, block)
        return [set(vars(block)), block.name, block.numel, set(vars(value)), str(value.shape)]

    made(new_block, new_tensor)  # remembers them
    if made(new_block, new_tensor) == made(block_init, tensor_init):
        core.block_type.__init__, core.tensor.__init__ = new_block, new_tensor
        core.block_type.once = True


def _remember_broadcasts(tl: Any, semantic: Any) -> None:
    """What two shapes of one rank become. A remembered shape is one object for all types that have it."""
    original = getattr(semantic, _BROADCAST)
    # By the two shapes; also in here, so that no other object gets their place.
    found: dict[tuple[int, int], tuple[Any, Any, list[int] | None, list[int] | None]] = {}

    def broadcast(self: Any, lhs: Any, rhs: Any) -> tuple[Any, Any]:
        left, right = lhs.type, rhs.type
        if not (left.is_block() and right.is_block()):
            made: tuple[Any, Any] = original(self, lhs, rhs)
            return made
        one, other = left.shape, right.shape
        if one is other:
            return lhs, rhs
        seen = found.get((id(one), id(other)))
        if seen is None:
            made = original(self, lhs, rhs)
            if len(one) == len(other):
                sizes = list(made[0].type.shape)
                to = [None if value is was else sizes for value, was in zip(made, (lhs, rhs), strict=True)]
                found[id(one), id(other)] = one, other, *to
            return made

        def spread(value: Any, sizes: list[int] | None) -> Any:
            if sizes is None:
                return value
            handle = self.builder.create_broadcast(value.handle, sizes)
            return self.make_tensor(handle, tl.block_type(value.type.scalar, sizes))

        return spread(lhs, seen[2]), spread(rhs, seen[3])

    setattr(semantic, _BROADCAST, broadcast)


def _look_for_overflow_when_it_is_told(semantic: Any) -> None:
    original = getattr(semantic, _OVERFLOW)

    def look(self: Any, *operation: Any) -> None:
        if self.builder.options.debug:
            original(self, *operation)

    setattr(semantic, _OVERFLOW, look)


def _remembered_types(tl: Any, look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    found: dict[Any, Any] = {}

    def np_dtype(tt_dtype: Any) -> Any:
        element = tt_dtype.element_ty if isinstance(tt_dtype, tl.block_type) else tt_dtype
        if isinstance(element, tl.pointer_type):
            return look_up(element)
        if element not in found:
            found[element] = look_up(element)
        return found[element]

    return np_dtype
