"""How a training went, read from what fairseq logged of it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class LogError(Exception):
    """Bad input, said in one sentence."""


@dataclass(frozen=True)
class Point:
    """A perplexity, after so many updates, which took so many seconds (validations in between included)."""

    update: int
    seconds: float
    perplexity: float


@dataclass(frozen=True)
class Curve:
    """One training.

    Attributes:
        name: what it is called.
        training: means over the batches since the point before.
        validation: of the whole validation set.
    """

    name: str
    training: list[Point]
    validation: list[Point]

    @property
    def best(self) -> Point:
        return min(self.validation, key=lambda point: point.perplexity)

    def reaches(self, perplexity: float) -> Point | None:
        """Where the validation first is as low as that, on straight lines in the logarithm; or None."""
        last: Point | None = None
        for point in self.validation:
            if point.perplexity <= perplexity:
                if last is None:
                    return point
                part = math.log(last.perplexity / perplexity) / math.log(last.perplexity / point.perplexity)
                update = last.update + part * (point.update - last.update)
                return Point(round(update), last.seconds + part * (point.seconds - last.seconds), perplexity)
            last = point
        return None


def logged(line: str) -> dict[str, Any]:
    """The numbers in a line of a log; nothing for a line of free text."""
    # A time and a level may stand before them, and even a line that was cut short by a kill.
    start = line.rfind('{"')
    try:
        values = json.loads(line[start:]) if start >= 0 else {}
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}


def read_log(path: Path, name: str) -> Curve:
    """What fairseq logged of a training with ``--log-format json``.

    Several processes may have written it one after the other, when the training was interrupted and resumed:
    of two lines after as many updates the later counts. Seconds are added up from the words per second of
    each line, so that they too count an update once. fairseq's own ``wall`` does not survive resuming.

    Raises:
        LogError: there is no such file, or no training or no validation in it.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, IsADirectoryError):
        raise LogError(f"there is no log {path}") from None
    batches: dict[int, dict[str, Any]] = {}
    valid: dict[int, dict[str, Any]] = {}
    for line in text.splitlines():
        values = logged(line)
        if "valid_num_updates" in values:
            valid[int(values["valid_num_updates"])] = values
        elif "num_updates" in values:
            batches[int(values["num_updates"])] = values
    if not batches or not valid:
        raise LogError(
            f"{path} has no lines of {'validation' if batches else 'training'}; fairseq-train logs both with "
            "--log-format json, batches every --log-interval updates"
        )
    training: list[Point] = []
    seconds, before = 0.0, 0
    for update in sorted(batches):
        values = batches[update]
        speed = float(values["wps"])
        # fairseq knows no speed when it logs the first update of all.
        seconds += (update - before) * float(values["wpb"]) / speed if speed else 0.0
        before = update
        training.append(Point(update, seconds, _perplexity(values)))
    validation = [
        Point(update, _seconds_at(update, training), _perplexity(valid[update], "valid_"))
        for update in sorted(valid)
    ]
    return Curve(name, training, validation)


def _perplexity(values: dict[str, Any], prefix: str = "") -> float:
    """As logged; some criteria log bits a token only, and without label smoothing they are the loss."""
    if f"{prefix}ppl" in values:
        return float(values[f"{prefix}ppl"])
    return float(2 ** float(values.get(f"{prefix}nll_loss", values[f"{prefix}loss"])))


def _seconds_at(update: int, training: list[Point]) -> float:
    """Seconds after an update, on straight lines between the updates that were logged."""
    before = Point(0, 0.0, 0.0)
    for after in training:
        if after.update >= update:
            part = (update - before.update) / (after.update - before.update)
            return before.seconds + part * (after.seconds - before.seconds)
        before = after
    # Validated after the last logged update: at the speed so far.
    return before.seconds * update / before.update
