"""Compiles what the check will launch, in as many processes as there are cores: one by one it takes minutes.

What is compiled lands in Triton's cache on disk, where the launches find it. Kernels that are missed here are
compiled when they are first launched, as ever.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from functools import partial

from mhe_fairseq.heads.kernels import tiles
from scripts.gpu import values
from scripts.gpu.cases import KINDS, MAIN, Shape
from scripts.gpu.compiled import get_ready, warm
from scripts.gpu.forks import in_forks
from scripts.gpu.record import Recorder, Signature
from scripts.gpu.tile_times import overridden

#: What changes from batch to batch compiles nothing, so that few tokens tell as much as many.
_TOKENS = 64


#: Parts that run these cases themselves, and parts whose commands train in half precision.
_STEPS, _TRAININGS = frozenset("abc"), frozenset("dfg")


def cases(parts: Collection[str]) -> Iterator[tuple[str, Shape]]:
    """Heads and sizes of parts, by their letters, in the order in which they are needed."""
    if not _STEPS.isdisjoint(parts):
        yield from _of_steps()
    if not _TRAININGS.isdisjoint(parts):
        for dtype in ("fp16", "bf16"):
            for vocab in (32_768, 262_144):
                for name in MAIN:
                    yield name, Shape(vocab, 512, _TOKENS, dtype)


#: Heads that are searched in part (e), and in which types.
_SEARCHED, _SEARCH_TYPES = ("cascade", "cascade-tied", "product", "mixture"), ("fp32", "fp16", "bf16")


def _of_steps() -> Iterator[tuple[str, Shape]]:
    small, large = values.SMALL, values.LARGE
    for dtype, names in values.TYPES.items():
        for name in names:
            if KINDS[name].kernels:
                yield name, Shape(small.vocab, small.dim, _TOKENS, dtype)
    for name in MAIN:
        yield name, Shape(large.vocab, large.dim, _TOKENS)
    for name, kind in KINDS.items():
        if kind.kernels:
            yield name, Shape(32_768, 512, _TOKENS)
    for vocab in (262_144, 1_048_576):
        for name in MAIN:
            yield name, Shape(vocab, 512, _TOKENS)


def precompile(arch: int, jobs: int, seconds: float, parts: Collection[str]) -> dict[str, object]:
    """Compile what these parts need for this compute capability; returns what was done, and what failed."""
    begin = time.monotonic()
    until = begin + seconds
    recorder = Recorder()
    for name, shape in cases(parts):
        # Scores without a gradient are asked for in part (a) alone.
        recorder.case(name, shape, ("smoothing", "scoring") if shape.vocab < 32_768 else ("smoothing",))
        if time.monotonic() > begin + seconds / 3:
            break
    for dtype in _SEARCH_TYPES if "e" in parts else ():
        for vocab in (32_768, 262_144):
            for name in _SEARCHED:
                recorder.case(name, Shape(vocab, 512, _TOKENS, dtype), ("search",))
    for kernel, candidates in tiles.CANDIDATES.items() if "c" in parts else ():
        for tile in candidates:
            with overridden(kernel, tile):
                for vocab in (32_768, 262_144):
                    recorder.case("cascade", Shape(vocab, 512, _TOKENS))
    signatures = list(recorder.found.values())
    recorded = time.monotonic() - begin
    get_ready()
    works = [partial(_compile, each, arch) for each in signatures]
    failed, done = {}, 0
    for number, result in in_forks(works, jobs, until):
        done += 1
        if isinstance(result, Exception):
            failed[f"{signatures[number].name}, {signatures[number].where}"] = str(result)
    return {
        "kernels": len(signatures),
        "compiled": done,
        "failed": failed,
        "recording_seconds": round(recorded, 1),
        "seconds": round(time.monotonic() - begin, 1),
    }


def _compile(signature: Signature, arch: int) -> None:
    warm(signature, arch)
