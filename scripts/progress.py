"""A bar on a terminal, nothing in a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

Item = TypeVar("Item")


def watched(
    items: Iterable[Item], name: str, total: float | None, weight: Callable[[Item], int] = lambda item: 1
) -> Iterator[Item]:
    """The items, while a bar shows how many there were.

    Args:
        items: what passes.
        name: beside the bar.
        total: sum of all weights; None: unknown.
        weight: of an item.
    """
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(name, total=total)
        for item in items:
            yield item
            bar.advance(task, weight(item))
