"""Long lists in a sentence."""

from __future__ import annotations

from collections.abc import Iterable


def first_of(names: Iterable[object], most: int, between: str = ", ") -> str:
    """The first ``most`` of them by name, and how many more there are."""
    every = list(map(str, names))
    more = f" and {len(every) - most:,} more" if len(every) > most else ""
    return between.join(every[:most]) + more
