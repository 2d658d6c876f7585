"""Work in processes of its own, some at a time, that survives a process that dies."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_forks(
    works: Sequence[Callable[[], Any]], jobs: int, until: float | None = None
) -> Iterator[tuple[int, Any]]:
    """Do each of ``works`` in a forked process; yields its number and what it returned, as each ends.

    Forked, so that what a work needs is there already, jitted functions too. What a work raises is returned.
    One that dies, as a compiler does that meets a failed assertion, has a ``RuntimeError`` for its result.

    Args:
        works: functions whose results can be pickled.
        jobs: processes at a time.
        until: by ``time.monotonic``, when what is not done is given up: it is not yielded.
    """
    context = multiprocessing.get_context("fork")
    running: dict[Connection, tuple[int, multiprocessing.context.ForkProcess]] = {}
    todo = list(range(len(works)))[::-1]
    try:
        while todo or running:
            while todo and len(running) < max(1, jobs):
                number = todo.pop()
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_serve, args=(theirs, works[number]), daemon=True)
                process.start()
                theirs.close()
                running[ours] = number, process
            left = None if until is None else until - time.monotonic()
            ready = wait(list(running), None if left is None else max(0.0, left))
            if not ready:
                return
            for line in ready:
                assert isinstance(line, Connection)
                number, process = running.pop(line)
                try:
                    result = line.recv()
                except EOFError:
                    process.join()
                    result = RuntimeError(f"its process died (exit code {process.exitcode})")
                line.close()
                process.join()
                yield number, result
    finally:
        for line, (_, process) in running.items():
            process.kill()
            process.join()
            line.close()


def _serve(line: Connection, work: Callable[[], Any]) -> None:
    try:
        result = work()
    except Exception as error:  # told by its kind and first line: not every exception can be pickled
        result = RuntimeError(f"{type(error).__name__}: {_first_line(error)}")
    line.send(result)
    line.close()


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # Triton shows the source first and says what is wrong with it last.
    return lines[-1] if lines else ""
