"""Parts of the check on a GPU: each a list of checks with a time limit, none of which stops the others."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from scripts.gpu.workshop import NotHere, Workshop


class OutOfTime(BaseException):
    """A part's time is over. No ``Exception``: what a check catches of its own must not catch this."""


@dataclass(frozen=True)
class Settings:
    """What all parts are told.

    Attributes:
        device: where.
        smoke: tiny sizes, in the interpreter, to see that everything runs.
        jobs: processes that may compile at a time.
        workshop: where commands run, and what they need is made.
    """

    device: torch.device
    smoke: bool
    jobs: int
    workshop: Workshop = field(default_factory=Workshop)


@dataclass
class Outcome:
    """Of a part.

    Attributes:
        checks: one each, in order: "name", "ok" (None: nothing that could be wrong), what was seen; "error"
            where it broke off.
        missed: names of checks that there was no time for.
        absent: what could not be looked at for want of something that is not installed, a line each.
        seconds: that it took.
        tables: (title, header, rows) to show, made of what was seen.
    """

    checks: list[dict[str, Any]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tables: list[tuple[str, list[str], list[list[str]]]] = field(default_factory=list)

    @property
    def failed(self) -> list[dict[str, Any]]:
        return [check for check in self.checks if check["ok"] is False]

    def named(self, name: str) -> dict[str, Any] | None:
        """What a check saw, None where it was not reached."""
        return next((check for check in self.checks if check["name"] == name), None)


#: What a check returns: whether it is right (None: nothing to be wrong), and what it saw.
Seen = tuple[bool | None, dict[str, Any]]


@dataclass(frozen=True)
class Check:
    """A check by its name."""

    name: str
    run: Callable[[], Seen]


@dataclass(frozen=True)
class Part:
    """A part by its letter.

    Attributes:
        letter: for ``--parts``.
        title: what it looks at.
        seconds: its time limit when not told.
        checks: settings -> its checks, most important first.
        show: fills ``tables`` of an outcome.
    """

    letter: str
    title: str
    seconds: float
    checks: Callable[[Settings], Sequence[Check]]
    show: Callable[[Outcome], None]


def run_part(part: Part, settings: Settings, seconds: float, say: Callable[[str], None]) -> Outcome:
    """Do a part's checks until its time is over."""
    outcome, begin = Outcome(), time.monotonic()
    checks: list[Check] = []
    reached: set[str] = set()
    try:
        # The interpreter's time says nothing of a GPU's.
        with _time_limit(60 * seconds if settings.smoke else seconds):
            checks += part.checks(settings)
            for check in checks:
                try:
                    seen = _done(check)
                except NotHere as error:
                    reached.add(check.name)
                    outcome.absent.append(f"{check.name}: {error}")
                    continue
                reached.add(check.name)
                outcome.checks.append(seen)
                if seen["ok"] is False:
                    say(f"  {check.name}: {_why(seen)}")
    except OutOfTime:  # what it was at is no failure of what it looks at
        if not checks:
            outcome.missed = [f"all of {part.title}"]
    except NotHere as error:
        outcome.absent.append(str(error))
    except Exception as error:  # of a part's preparations: the other parts go on
        outcome.checks.append({"name": f"{part.letter}: preparations", "ok": False, "error": _error(error)})
    outcome.missed += [check.name for check in checks if check.name not in reached]
    outcome.seconds = time.monotonic() - begin
    try:
        part.show(outcome)
    except Exception as error:
        outcome.checks.append({"name": f"{part.letter}: table", "ok": False, "error": _error(error)})
    return outcome


def _done(check: Check) -> dict[str, Any]:
    begin = time.monotonic()
    try:
        ok, seen = check.run()
    except NotHere:
        raise
    except Exception as error:  # a check may break in any way, and the others are of use all the same
        ok, seen = False, {"error": _error(error), "trace": traceback.format_exc(limit=-6)}
    return {"name": check.name, "ok": ok, "seconds": round(time.monotonic() - begin, 3)} | seen


def _error(error: Exception) -> str:
    first = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {first}"


def _why(seen: dict[str, Any]) -> str:
    return str(seen.get("error") or seen.get("wrong") or "failed")


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Raise ``OutOfTime`` in the main thread when this takes longer."""

    def over(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.001))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
