"""A bar on a terminal, nothing in a file."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")


#: Items between two looks at the bar, which cost more than most items.
_STEP = 1000


def watched(items: Iterable[Item], name: str, total: float | None) -> Iterator[Item]:
    """The items, while a bar shows how many there were.

    Args:
        items: what passes.
        name: beside the bar.
        total: how many there are; None: unknown.
    """
    console = Console(stderr=True)
    step = _STEP if total is None or total > _STEP else 1
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)
        for number, item in enumerate(items, start=1):
            yield item
            if number % step == 0:
                bar.advance(task, step)
