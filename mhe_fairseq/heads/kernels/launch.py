"""How kernels are launched, and watched: tests count launches, and reports see what would be compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from mhe_fairseq.heads.kernels.dispatch import interpreting


class Tile(NamedTuple):
    """How a kernel is cut: constants of its own (``BM``, ``BN``, ...), and how it is compiled."""

    constants: dict[str, int]
    warps: int = 4
    stages: int = 3


class Launch(NamedTuple):
    """A launch as a watcher sees it.

    Attributes:
        kernel: the jitted function.
        grid: programs along each axis.
        arguments: name -> tensor, number, or None: in the kernel's order.
        constants: name -> value, those of the tile among them.
        tile: warps and stages.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    constants: dict[str, Any]
    tile: Tile


_watcher: Callable[[Launch], bool] | None = None


def launch(
    kernel: Any, grid: tuple[int, ...], arguments: tuple[Any, ...], tile: Tile, **constants: Any
) -> None:
    """Launch a kernel: ``arguments`` are its first parameters in order, the others are constants."""
    constants |= tile.constants
    if _watcher is not None and not _watcher(Launch(kernel, grid, arguments, constants, tile)):
        return
    kernel[grid](*arguments, **constants, num_warps=tile.warps, num_stages=tile.stages)


@contextmanager
def watched(watcher: Callable[[Launch], bool]) -> Iterator[None]:
    """Show every launch to ``watcher``, which says whether it is done."""
    global _watcher
    before, _watcher = _watcher, watcher
    try:
        yield
    finally:
        _watcher = before


def precision(dtype: torch.dtype) -> str:
    """Of products, for ``scores.dot``: of fp32 numbers as torch's own, exact unless the user allowed TF32."""
    if interpreting():
        return "interpreted"
    return "tf32" if dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32 else "ieee"


def cdiv(a: int, b: int) -> int:
    return -(-a // b)


def power_of_2(n: int) -> int:
    """The smallest power of 2 that is at least ``n``."""
    return 1 << max(0, n - 1).bit_length()
