"""The value of one flag, as a command line, YAML or a checkpoint has it, checked.

Each raises an ``MHEError`` that names the flag and the value.
"""

from __future__ import annotations

import math
from typing import Any

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.flags import flag


def whole_of(args: Any, name: str, lowest: int) -> int | None:
    value = getattr(args, name, None)
    if value is None:
        return None
    try:
        number = int(str(value))
    except ValueError:
        number = lowest - 1
    if number < lowest:
        raise MHEError(f"{flag(name)} must be a whole number of at least {lowest}, got {value!r}")
    return number


def switch_of(args: Any, name: str) -> bool:
    value = getattr(args, name, None)
    if value is None or isinstance(value, bool):
        return bool(value)
    raise MHEError(f"{flag(name)} is true or false, got {value!r}")


def share_of(args: Any, name: str, whole: bool = False) -> float | None:
    value = getattr(args, name, None)
    if value is None:
        return None
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not (0.0 <= number < 1.0 or (whole and number == 1.0)):
        least_and_most = "from 0 to 1" if whole else "of at least 0 and below 1"
        raise MHEError(f"{flag(name)} must be a number {least_and_most}, got {value!r}")
    return number


def word_of(args: Any, name: str, words: tuple[str, ...]) -> str | None:
    value = getattr(args, name, None)
    if value is None or value in words:
        return value
    raise MHEError(f"{flag(name)} must be one of {', '.join(words)}; got {value!r}")
