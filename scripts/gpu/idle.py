"""Tables that are made without being filled: for looking at what would be done with them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

#: Tensors of more numbers are left as the allocator gives them: pages that nobody writes take no memory.
LARGE = 1 << 20


class Idle(TorchDispatchMode):
    """Within, large tables are not filled, converted or copied, and small tensors are zero where they would
    be left as they are: where no kernel fills them, what reads them must find indices that are in range."""

    _EMPTY = frozenset(
        {
            torch.ops.aten.empty.memory_format,
            torch.ops.aten.empty_like.default,
            torch.ops.aten.empty_strided.default,
            torch.ops.aten.new_empty.default,
            torch.ops.aten.new_empty_strided.default,
        }
    )
    _FILL = frozenset({torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default})

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if args and isinstance(args[0], Tensor) and args[0].numel() > LARGE:
            if func in self._FILL or func is torch.ops.aten.zero_.default:
                return args[0]
            if func is torch.ops.aten._to_copy.default:
                return torch.empty_like(args[0], dtype=kwargs.get("dtype"), device=kwargs.get("device"))
        out = func(*args, **kwargs)
        if func in self._EMPTY and isinstance(out, Tensor) and out.numel() <= LARGE:
            out.zero_()
        return out
