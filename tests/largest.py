"""How large the tensors are that some code makes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class LargestNewTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest storage made inside; a view makes none."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and not func.is_view:
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result
