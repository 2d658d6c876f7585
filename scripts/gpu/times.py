"""Part (c): time and peak memory of a step of every head and of its peers, and where the time goes."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import torch

from mhe_fairseq.bench.timing import interleave
from mhe_fairseq.heads.kernels import tiles
from scripts.gpu.cases import MAIN, Case, Shape
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings
from scripts.gpu.peers import PEERS, Peer
from scripts.gpu.tile_times import synchronizer, tile_times
from scripts.gpu.values import plain

#: Milliseconds that a step should take at most, by V.
TARGETS: dict[str, dict[int, float]] = {
    "product": {32_768: 0.9, 262_144: 0.9},
    "mixture": {32_768: 1.5, 262_144: 2.0},
    "cascade": {32_768: 1.1, 262_144: 1.4, 1_048_576: 3.0},
    "cascade-tied": {32_768: 1.1, 262_144: 1.4, 1_048_576: 3.0},
    "sampling": {32_768: 1.5, 262_144: 2.5},
    "sampling-tied": {32_768: 1.5, 262_144: 2.5},
    "sampling-predicted": {32_768: 1.5, 262_144: 2.5},
}

_VOCABS = (32_768, 262_144, 1_048_576)
_SMOKE_VOCABS = (41,)

#: Seconds of rounds of one vocabulary, and the most rounds.
_SECONDS, _ROUNDS = 5.0, 7

_PLAIN = ", plain torch"


class Step(Protocol):
    """A forward and backward pass that can be made again and again."""

    def prepare(self) -> None: ...

    def run(self) -> None: ...

    def release(self) -> None: ...


def checks(settings: Settings) -> Sequence[Check]:
    """Our heads at each V; peers and plain torch; profiles; other tiles."""
    vocabs = _SMOKE_VOCABS if settings.smoke else _VOCABS
    found = [Check(f"V = {vocab:,}", partial(_times, _heads(vocab, settings), settings)) for vocab in vocabs]
    profiled = MAIN[:1] if settings.smoke else MAIN
    found += [Check(f"profile {name}", partial(_profile, name, vocabs[0], settings)) for name in profiled]
    found += [
        Check(f"peers, V = {vocab:,}", partial(_times, _peers(vocab, settings), settings))
        for vocab in vocabs[:2]
    ]
    found += [
        Check(
            f"tiles of {kernel}",
            partial(tile_times, kernel, partial(_case, settings=settings), vocabs[:2], settings),
        )
        for kernel in list(tiles.CANDIDATES)[: 1 if settings.smoke else None]
    ]
    return found


def _shape(vocab: int, settings: Settings) -> Shape:
    return Shape(vocab, 16, 5) if settings.smoke else Shape(vocab, 512, 4096)


def _case(name: str, vocab: int, settings: Settings) -> Case:
    # A tied table's rows are read by their tokens, which a learned codebook puts in no order.
    return Case(name, _shape(vocab, settings), settings.device, shuffled=name == "cascade-tied")


def _heads(vocab: int, settings: Settings) -> dict[str, Callable[[], Step]]:
    return {name: partial(_case, name, vocab, settings) for name in MAIN}


def _peers(vocab: int, settings: Settings) -> dict[str, Callable[[], Step]]:
    """The default head once more, so that it is in the same rounds; then the others."""
    shape, device = _shape(vocab, settings), settings.device
    found: dict[str, Callable[[], Step]] = {"cascade": partial(_case, "cascade", vocab, settings)}
    for name, make in PEERS.items():
        if settings.smoke and "compile" in name:  # a compiler of C++ need not be here
            continue
        found[name] = lambda make=make: Peer(make(), shape, device)  # type: ignore[misc]
    for name in MAIN:
        found[name + _PLAIN] = lambda name=name: _Plain(_case(name, vocab, settings))  # type: ignore[misc]
    return found


class _Plain:
    """A head's step in plain torch."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.prepare, self.release = case.prepare, case.release

    def run(self) -> None:
        with plain():
            self.case.run()


class _Timed:
    """A step that keeps the device's own time of every run."""

    def __init__(self, step: Step, settings: Settings) -> None:
        self.step, self.cuda = step, settings.device.type == "cuda"
        self.prepare, self.release = step.prepare, step.release
        self.events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def run(self) -> None:
        if not self.cuda:
            return self.step.run()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        self.step.run()
        end.record()
        self.events.append((begin, end))
        return None

    def milliseconds(self) -> float | None:
        """Median; None on the CPU."""
        return statistics.median(a.elapsed_time(b) for a, b in self.events) if self.events else None


def _times(makers: dict[str, Callable[[], Step]], settings: Settings) -> Seen:
    """Medians of rounds in turns, and the peak of memory; a step that fails is told and left out."""
    steps: dict[str, _Timed] = {}
    failed: dict[str, str] = {}
    absent: list[str] = []
    peaks: dict[str, float] = {}
    for name, make in makers.items():
        try:
            timed = _Timed(make(), settings)
            timed.prepare()
            timed.run()  # compiles
            peaks[name] = _peak(timed, settings)
            timed.release()
            timed.events.clear()
            steps[name] = timed
        except ImportError:
            absent.append(name)
        except Exception as error:  # out of memory, a peer that does not know the card, ...
            failed[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    seconds: dict[str, list[float]] = defaultdict(list)
    end = time.monotonic() + _SECONDS
    if settings.smoke:
        seconds = {name: [_once(step)] for name, step in steps.items()}
    for _ in range(0 if settings.smoke else _ROUNDS):
        for name, samples in interleave(steps, 1, synchronizer(settings)).items():
            seconds[name] += samples.seconds
        if time.monotonic() > end:
            break
    rows = {
        name: {
            "wall_ms": 1000 * statistics.median(seconds[name]),
            "event_ms": step.milliseconds(),
            "peak_mib": peaks[name],
            "rounds": len(seconds[name]),
        }
        for name, step in steps.items()
    }
    ours = [name for name in failed if name.removesuffix(_PLAIN) in MAIN]
    wrong = "; ".join(f"{name}: {failed[name]}" for name in ours)
    return not ours, {"wrong": wrong, "steps": rows, "failed": failed, "absent": absent}


def _once(step: Step) -> float:
    """Seconds of one step on the CPU."""
    step.prepare()
    begin = time.monotonic()
    step.run()
    return time.monotonic() - begin


def _peak(step: Step, settings: Settings) -> float:
    """MiB that a step takes beside what is there before it; 0 on the CPU."""
    if settings.device.type != "cuda":
        return 0.0
    step.prepare()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step.run()
    torch.cuda.synchronize()
    return float(torch.cuda.max_memory_allocated() - before) / 2**20


def _profile(name: str, vocab: int, settings: Settings) -> Seen:
    """Milliseconds on the device (on the CPU: of operators) by kernel."""
    from torch.profiler import ProfilerActivity, profile

    case = _case(name, vocab, settings)
    is_cuda = settings.device.type == "cuda"
    for _ in range(2):
        case.prepare()
        case.run()
    case.prepare()
    synchronizer(settings)()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_cuda else [])]
    with profile(activities=activities) as profiler:
        case.run()
        synchronizer(settings)()
    field = "self_device_time_total" if is_cuda else "self_cpu_time_total"
    events = [(each.key, float(getattr(each, field)) / 1000, each.count) for each in profiler.key_averages()]
    events = sorted((each for each in events if each[1] > 0), key=lambda each: -each[1])
    return None, {
        "total_ms": sum(each[1] for each in events),
        "entries": sum(each[2] for each in events),
        "kernels": [{"name": key[:80], "ms": ms, "count": count} for key, ms, count in events[:12]],
    }


def show(outcome: Outcome) -> None:
    """Times and memory by V, with targets; device time; tiles that would have been faster."""
    for check in outcome.checks:
        rows = check.get("steps")
        if not rows:
            continue
        vocab = int(check["name"].rpartition("= ")[2].replace(",", ""))
        lines = [_row(name, row, vocab) for name, row in rows.items()]
        lines += [[name, "failed", "", "", why] for name, why in check["failed"].items()]
        title = f"A step, {check['name']}" + (
            f" (not here: {', '.join(check['absent'])})" if check["absent"] else ""
        )
        outcome.tables.append((title, ["layer", "ms, wall", "ms, events", "peak MiB", "target"], lines))
    profiles = [check for check in outcome.checks if "kernels" in check]
    lines = [
        [
            check["name"].removeprefix("profile "),
            f"{check['total_ms']:.3f}",
            str(check["entries"]),
            _most(check),
        ]
        for check in profiles
    ]
    if lines:
        outcome.tables.append(("Profile of a step", ["head", "ms", "entries", "most of it"], lines))
    lines = [
        [each["head"], f"{each['vocab']:,}", each["kernel"], each["chosen"], f"{each['chosen_ms']:.3f}",
         each["tile"], f"{each['ms']:.3f}"]
        for check in outcome.checks
        for each in check.get("tiles", [])
        if each.get("chosen_ms") and each["ms"] < 0.95 * each["chosen_ms"]
    ]  # fmt: skip
    if lines:
        header = ["head", "V", "kernel", "chosen tile", "ms", "other tile", "ms"]
        outcome.tables.append(("Tiles that would have been faster", header, lines))


def _row(name: str, row: dict[str, Any], vocab: int) -> list[str]:
    target = TARGETS.get(name, {}).get(vocab)
    verdict = "-"
    if target is not None:
        verdict = f"{target:g} {'met' if row['wall_ms'] <= target else 'missed'}"
    events = "-" if row["event_ms"] is None else f"{row['event_ms']:.2f}"
    return [name, f"{row['wall_ms']:.2f}", events, f"{row['peak_mib']:,.0f}", verdict]


def _most(check: dict[str, Any]) -> str:
    return "; ".join(f"{each['name'][:32]} {each['ms']:.3f}" for each in check["kernels"][:4])


PART = Part("c", "times and memory", 110, checks, show)
