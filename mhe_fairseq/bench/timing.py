"""Times of several steps that can be compared: measured in turns, round after round."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

Key = TypeVar("Key", bound=Hashable)

#: Seconds of timed steps aimed at for one step's turn in a round, and the most steps in it.
_TURN_SECONDS = 0.5
_TURN_STEPS = 10


def clock_of(cpu_time: bool) -> Callable[[], float]:
    """Seconds of this process's processor time, or of the clock."""
    return time.process_time if cpu_time else time.perf_counter


#: A step that takes longer than this, in seconds, needs no warm-up: what it finds cold is a small part of it.
_SLOW = 5.0


class Step(Protocol):
    """What is timed."""

    def prepare(self) -> None:
        """Before every run, not timed."""

    def run(self) -> None:
        """One step, timed."""

    def release(self) -> None:
        """After its turn, not timed: give back memory that the other steps may need."""


@dataclass(frozen=True)
class Samples:
    """Times of one step.

    Attributes:
        seconds: one a round: the median of the steps that ran one after the other in its turn.
        steps: timed steps in a turn.
    """

    seconds: tuple[float, ...]
    steps: int

    @property
    def median(self) -> float:
        """Of the rounds, in seconds."""
        return statistics.median(self.seconds)


def interleave(
    steps: Mapping[Key, Step],
    rounds: int,
    synchronize: Callable[[], None] = lambda: None,
    clock: Callable[[], float] = time.perf_counter,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[Key, Samples]:
    """Time steps in turns: A, B, C, A, B, C, ...

    What else a machine does changes from minute to minute. In turns all steps have their share of it, and
    ratios within a round are of the same minute. In its turn a step runs a few times in a row, as in a
    training loop: it is warmed up first, untimed, because the steps before it have left the caches and the
    allocator as they needed them.

    Args:
        steps: by name (or any key).
        rounds: turns of each.
        synchronize: waits until the device has done what it was given.
        clock: seconds.
        progress: told the number of rounds done, 0 after the first warm-up.
    """
    timed = _Timer(synchronize, clock)
    with no_garbage_collection():
        turns: dict[Key, tuple[int, int]] = {}
        for name, step in steps.items():
            turns[name] = timed.plan(step)
            step.release()
        progress(0)
        seconds: dict[Key, list[float]] = {name: [] for name in steps}
        for done in range(1, rounds + 1):
            for name, step in steps.items():
                warm, count = turns[name]
                for _ in range(warm):
                    timed(step)
                seconds[name].append(statistics.median(timed(step) for _ in range(count)))
                step.release()
            progress(done)
    return {name: Samples(tuple(seconds[name]), turns[name][1]) for name in steps}


class _Timer:
    """Runs a step and returns its seconds."""

    def __init__(self, synchronize: Callable[[], None], clock: Callable[[], float]) -> None:
        self._synchronize = synchronize
        self._clock = clock

    def __call__(self, step: Step) -> float:
        step.prepare()
        self._synchronize()
        begin = self._clock()
        step.run()
        self._synchronize()
        return self._clock() - begin

    def plan(self, step: Step) -> tuple[int, int]:
        """How many steps to warm up with, and how many to time, in a turn."""
        seconds = self(step)
        if seconds > _SLOW:
            return 0, 1
        seconds = self(step)
        count = _TURN_STEPS
        if seconds > 0.0:
            count = min(_TURN_STEPS, max(1, math.ceil(_TURN_SECONDS / seconds)))
        return math.ceil(count / 4), count


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not within."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def fit_exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The b of ``seconds = a * sizes ** b``, by least squares of the logarithms."""
    return statistics.linear_regression([math.log(s) for s in sizes], [math.log(t) for t in seconds]).slope
