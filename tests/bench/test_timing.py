"""Turns, warm-ups and medians on a clock that only steps move."""

from __future__ import annotations

import gc

import pytest

from mhe_fairseq.bench.timing import Samples, fit_exponent, interleave


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class FakeStep:
    """Takes ``seconds``, one run after the other, then the last of them again and again."""

    def __init__(self, name: str, seconds: list[float], clock: Clock, log: list[str]) -> None:
        self.name, self.seconds, self.clock, self.log = name, list(seconds), clock, log

    def prepare(self) -> None:
        self.clock.now += 1000.0  # not timed
        self.log.append(f"prepare {self.name}")

    def run(self) -> None:
        assert self.log[-1] == f"prepare {self.name}"
        assert not gc.isenabled()
        self.log[-1] = self.name
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]

    def release(self) -> None:
        self.log.append(f"release {self.name}")


def test_steps_take_turns() -> None:
    clock, log = Clock(), list[str]()
    steps = {name: FakeStep(name, [9.0], clock, log) for name in "abc"}
    told: list[int] = []
    samples = interleave(steps, 2, clock=clock, progress=told.append)
    # Slow ones: run once to see that, and then without a warm-up.
    assert log == ["a", "release a", "b", "release b", "c", "release c"] * 3
    assert told == [0, 1, 2]
    assert samples["b"] == Samples((9.0, 9.0), 1)
    assert gc.isenabled()


def test_a_turn_is_warm_ups_and_then_the_median_of_some_steps() -> None:
    clock, log = Clock(), list[str]()
    cold = [4.0, 0.2]
    first, second = [3.0, 0.1, 0.3, 0.2], [2.0, 0.5, 0.4, 0.6]
    fast = FakeStep("fast", [*cold, *first, *second], clock, log)
    other = FakeStep("other", [1.0], clock, log)
    samples = interleave({"fast": fast, "other": other}, 2, clock=clock)
    # 0.2 seconds when warm: three steps in a turn of half a second, after one that warms up.
    assert samples["fast"].seconds == pytest.approx((0.2, 0.5)) and samples["fast"].steps == 3
    assert samples["fast"].median == pytest.approx(0.35)
    assert samples["other"] == Samples((1.0, 1.0), 1)
    turns = ["fast"] * 4 + ["release fast"] + ["other"] * 2 + ["release other"]
    assert log[6:] == turns * 2
    assert log[:6] == ["fast", "fast", "release fast", "other", "other", "release other"]


def test_very_fast_steps_have_ten_in_a_turn() -> None:
    clock, log = Clock(), list[str]()
    steps = {name: FakeStep(name, [seconds], clock, log) for name, seconds in (("a", 1e-4), ("b", 0.0))}
    samples = interleave(steps, 3, clock=clock)
    assert [each.steps for each in samples.values()] == [10, 10]
    assert log.count("a") == 2 + 3 * 13


def test_the_clock_is_read_after_the_device_is_done() -> None:
    clock, log = Clock(), list[str]()

    def synchronize() -> None:
        if log[-1] == "a":  # the step only asked for the work
            clock.now += 6.0
            log[-1] = "a done"

    samples = interleave({"a": FakeStep("a", [0.0], clock, log)}, 1, synchronize, clock)
    assert samples["a"].seconds == (6.0,)


def test_garbage_collection_comes_back_after_an_error() -> None:
    class Failing(FakeStep):
        def run(self) -> None:
            raise RuntimeError("out of something")

    with pytest.raises(RuntimeError, match="out of something"):
        interleave({"a": Failing("a", [1.0], Clock(), [])}, 1)
    assert gc.isenabled()


def test_fit_exponent_is_exact_on_powers() -> None:
    sizes = [8192, 32768, 131072, 1048576]
    for exponent in (0.5, 0.0, 1.0, -0.25):
        times = [0.003 * v**exponent for v in sizes]
        assert fit_exponent(sizes, times) == pytest.approx(exponent, abs=1e-12)
    # Least squares by hand: log2 t = 0, 0, 3 over log2 V = 0, 1, 2 has slope 1.5.
    assert fit_exponent([1, 2, 4], [1.0, 1.0, 8.0]) == pytest.approx(1.5)
