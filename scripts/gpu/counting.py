"""What a step asks of torch and of the GPU: operators, launches of kernels, waits of the host."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mhe_fairseq.heads.kernels import launch
from mhe_fairseq.heads.kernels.launch import Launch


@contextmanager
def watching(see: Callable[[Launch], None]) -> Iterator[None]:
    """Show every launch of a kernel, which is done."""

    def watcher(seen: Launch) -> bool:
        see(seen)
        return True

    with launch.watched(watcher):
        yield


def waits_on_cuda(run: Callable[[], object]) -> int:
    """How often the host waits for the GPU, as torch itself sees it."""
    torch.cuda.synchronize()
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return sum("synchroniz" in str(each.message) for each in seen)


class Operators(TorchDispatchMode):
    """Counts what torch is asked to do, views left out, and what of it would wait for a GPU.

    Attributes:
        count: operator -> calls.
        waits: operator -> calls that read numbers on the host, or make a tensor whose size hangs on numbers.
    """

    _WAITS = (
        "aten._local_scalar_dense",
        "aten.nonzero",
        "aten.masked_select",
        "aten._unique2",
        "aten.unique_dim",
        "aten.unique_consecutive",
        "aten.equal",
        "aten.bincount",
    )

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket._qualified_op_name.replace("::", ".")
        if not func.is_view:
            self.count[name] += 1
        # Indices that are bools are counted first.
        by_bools = name.startswith("aten.index") and any(
            isinstance(each, Tensor) and each.dtype == torch.bool for each in _indices(args)
        )
        if name in self._WAITS or by_bools:
            self.waits[name] += 1
        return func(*args, **(kwargs or {}))


def _indices(args: tuple[Any, ...]) -> Sequence[Any]:
    return args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ()
