"""Operators after which the host has to wait for an accelerator, found without one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Each reads numbers on the host, or makes a tensor whose size hangs on numbers.
_WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "masked_scatter",
    "masked_scatter_", "repeat_interleave", "unique_dim", "unique_consecutive", "unique_dim_consecutive",
    "_unique", "_unique2", "bincount",
}  # fmt: skip
#: These only where a mask says which elements are meant.
_WITH_MASK = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


class Waits(TorchDispatchMode):
    """Lists in ``found`` the operators run inside that would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = waiting(func, args)
        if name is not None:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def waiting(func: Any, args: Any) -> str | None:
    """The operator's name where it would wait, None where not."""
    name: str = func._schema.name.removeprefix("aten::")
    is_masked = name in _WITH_MASK and any(_is_mask(index) for index in args[1])
    return name if name in _WAITING or is_masked else None


def _is_mask(index: Tensor | None) -> bool:
    return index is not None and index.dtype in (torch.bool, torch.uint8)
