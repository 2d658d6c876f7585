"""What the tiles that a kernel does not have would have taken, and the time of each kernel in a step."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from mhe_fairseq.heads.kernels import launch, tiles
from mhe_fairseq.heads.kernels.launch import Launch, Tile
from scripts.gpu.cases import MAIN, Case
from scripts.gpu.parts import Seen, Settings
from scripts.gpu.record import kernel_name


def tile_times(
    kernel: str, make: Callable[[str, int], Case], vocabs: Sequence[int], settings: Settings
) -> Seen:
    """Milliseconds a step of one kernel by tile, in the first head that has it."""
    found: list[dict[str, Any]] = []
    for name in MAIN:
        for vocab in vocabs:
            case = make(name, vocab)
            chosen = _kernel_times(case, None, settings)
            for tile in tiles.CANDIDATES[kernel][: 1 if settings.smoke else None]:
                row: dict[str, Any] = {"head": name, "vocab": vocab, "tile": _tile(tile)}
                try:
                    with overridden(kernel, tile):
                        seen = _kernel_times(case, tile, settings)
                except Exception as error:  # too much shared memory, say: a candidate is no promise
                    found.append(row | {"error": str(error)[:200]})
                    continue
                for launched, (ms, words) in seen.items():
                    before, its = chosen.get(launched, (None, ""))
                    row |= {"kernel": launched, "ms": ms, "chosen": its, "chosen_ms": before}
                    if words != its:
                        found.append(dict(row))
            if not found:
                break  # this head does not have the kernel
        if found:
            break
    return None, {"tiles": found}


@contextmanager
def overridden(kernel: str, tile: Tile) -> Iterator[None]:
    """A kernel has this tile within."""
    tiles.override[kernel] = tile
    try:
        yield
    finally:
        del tiles.override[kernel]


def _kernel_times(case: Case, only: Tile | None, settings: Settings) -> dict[str, tuple[float, str]]:
    """Milliseconds a step, and the tile, of each kernel (with ``only``, of those that have this tile)."""
    runs: list[dict[str, float]] = []
    words: dict[str, str] = {}
    for _ in range(2 if settings.smoke else 6):
        marks: list[tuple[str, Any, Any]] = []

        def watcher(seen: Launch, marks: list[tuple[str, Any, Any]] = marks) -> bool:
            is_it = only is None or seen.tile == only
            name = kernel_name(seen.kernel)
            begin = _mark(settings) if is_it else None
            seen.kernel[seen.grid](
                *seen.arguments, **seen.constants, num_warps=seen.tile.warps, num_stages=seen.tile.stages
            )
            if is_it:
                words[name] = _tile(seen.tile)
                marks.append((name, begin, _mark(settings)))
            return False

        case.prepare()
        with launch.watched(watcher):
            case.run()
        synchronizer(settings)()
        total: dict[str, float] = defaultdict(float)
        for name, begin, end in marks:
            total[name] += begin.elapsed_time(end) if settings.device.type == "cuda" else 1000 * (end - begin)
        runs.append(total)
    runs = runs[1:]  # the first compiles
    return {name: (statistics.median(run.get(name, 0.0) for run in runs), words[name]) for name in words}


def _mark(settings: Settings) -> Any:
    if settings.device.type != "cuda":
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def _tile(tile: Tile) -> str:
    sizes = " ".join(f"{name} {size}" for name, size in tile.constants.items())
    return f"{sizes}, {tile.warps} warps, {tile.stages} stages"


def synchronizer(settings: Settings) -> Callable[[], None]:
    return torch.cuda.synchronize if settings.device.type == "cuda" else lambda: None
