"""A GPU that is not there: its tensors hold their numbers on the CPU and do not mix with the CPU's.

So a command with ``--device cuda`` runs to its end on any machine, with its numbers, and a tensor made on the
wrong device is the error that it is on a GPU. Waits are not seen and kernels are not run: for these there is
``made_up_gpu``. The operators' own checks are not the GPU's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.weak import WeakTensorKeyDictionary

CUDA = torch.device("cuda", 0)

#: Parameters that were moved, and what became of them.
_moved = WeakTensorKeyDictionary()

#: What takes tensors of both sides: the first two move numbers; an index may be on the CPU.
_MOVES = {"_to_copy", "copy_"}
_INDEXED = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class OnGpu(Tensor):
    """A tensor of the GPU. To torch's own code it is one of the CPU, without memory: what reads it past the
    dispatcher raises."""

    held: Tensor
    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, inner: Tensor) -> OnGpu:
        made: OnGpu = Tensor._make_wrapper_subclass(
            cls, inner.shape, inner.stride(), inner.storage_offset(), dtype=inner.dtype
        )
        made.held = inner
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def to(self, *args: Any, **kwargs: Any) -> Any:
        device, dtype = _where_to(args, kwargs)
        dtype = self.dtype if dtype is None else dtype
        if device is None or device.type == "cuda":
            return self if dtype == self.dtype else Tensor.to(self, dtype)
        return _Down.apply(self).to(dtype)

    def cpu(self, *args: Any, **kwargs: Any) -> Any:
        return self.to("cpu")

    def cuda(self, *args: Any, **kwargs: Any) -> Any:
        return self

    def tolist(self) -> Any:
        return self.held.tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def type_as(self, other: Tensor) -> Any:
        return self.to(other)

    def __format__(self, how: str) -> str:
        return format(self.held, how)

    def numpy(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy")

    __array__ = numpy


class _Down(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: OnGpu) -> Tensor:
        return tensor.held.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return OnGpu(grad)


class _Up(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> OnGpu:
        return OnGpu(tensor.clone())

    @staticmethod
    def backward(ctx: Any, grad: OnGpu) -> Tensor:
        return grad.held


class _Calls(TorchFunctionMode):
    """Keeps the device from torch's own code, which knows that there is none."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.to, Tensor.cuda, Tensor.type_as) and not isinstance(args[0], OnGpu):
            return _up(func, *args, **kwargs)
        if _is_cuda(kwargs.get("device")):
            made = func(*args, **{**kwargs, "device": "cpu"})
            return OnGpu(made.detach()).requires_grad_(made.requires_grad) if type(made) is Tensor else made
        return func(*args, **kwargs)


def _up(func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    device, dtype = (CUDA, None) if func is Tensor.cuda else _where_to(args, kwargs)
    if not _is_cuda(device):
        return func(tensor, *args, **kwargs)
    if isinstance(tensor, torch.nn.Parameter) and not torch.is_grad_enabled() and dtype is None:
        # A module on its way. One that two modules share has one memory there, too.
        if tensor not in _moved:
            _moved[tensor] = _Up.apply(tensor)
        return _moved[tensor]
    return _Up.apply(tensor if dtype is None else tensor.to(dtype))


def _where_to(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.device | None, torch.dtype | None]:
    """What arguments of ``Tensor.to`` ask for: a device, a type, or those of another tensor."""
    device, dtype = kwargs.get("device"), kwargs.get("dtype")
    for each in args:
        if isinstance(each, Tensor):
            device, dtype = each.device, each.dtype
        elif isinstance(each, torch.dtype):
            dtype = each
        elif isinstance(each, (str, int, torch.device)) and not isinstance(each, bool):
            device = each
    return CUDA if _is_cuda(device) else None if device is None else torch.device(device), dtype


def _is_cuda(device: Any) -> bool:
    # A number is one of a GPU.
    return isinstance(device, int) or (device is not None and torch.device(device).type == "cuda")


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func._schema.name.removeprefix("aten::")
    there = [each for each in tree_flatten((args, kwargs))[0] if isinstance(each, OnGpu)]
    _check(func, name, args, kwargs, bool(there))
    bare_args, bare_kwargs = tree_map_only(OnGpu, lambda each: each.held, (args, kwargs))
    result = func(*bare_args, **bare_kwargs)
    same = {id(each.held): each for each in there}

    def dress(tensor: Tensor) -> Tensor:
        return same[id(tensor)] if id(tensor) in same else OnGpu(tensor)

    on_gpu = isinstance(args[0], OnGpu) if name == "copy_" else bool(there)
    return tree_map_only(Tensor, dress, result) if on_gpu else result


def _check(func: Any, name: str, args: Any, kwargs: dict[str, Any], any_there: bool) -> None:
    if not any_there or name in _MOVES:
        return
    met = (args[0], args[2:]) if name in _INDEXED and isinstance(args[0], OnGpu) else (args, kwargs)
    here = [each for each in tree_flatten(met)[0] if isinstance(each, Tensor) and not isinstance(each, OnGpu)]
    if any(each.dim() for each in here):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found cuda:0 and cpu, in {func}"
        )


@contextmanager
def pretend_cuda() -> Iterator[None]:
    """Within, torch has a CUDA device, and heads run in plain torch."""
    patch = pytest.MonkeyPatch()
    for name, value in {
        "is_available": True,
        "current_device": 0,
        "is_current_stream_capturing": False,
        "synchronize": None,
        "get_device_name": "a pretended GPU",
        "mem_get_info": (2**34, 2**34),
        "memory_allocated": 0,
        "max_memory_allocated": 2**20,
        "reset_peak_memory_stats": None,
    }.items():
        patch.setattr(torch.cuda, name, lambda *args, _value=value, **kwargs: _value)
    patch.setenv("MHE_KERNELS", "0")
    # A module's parameters become others, as tensors of the CPU cannot turn into these.
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with _Calls(), _Operators():
            yield
    finally:
        _moved.clear()
        torch.__future__.set_overwrite_module_params_on_conversion(before)
        patch.undo()
