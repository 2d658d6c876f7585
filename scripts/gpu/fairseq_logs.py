"""What fairseq's commands say of speed, memory, losses and translations."""

from __future__ import annotations

import json
import math
import re
import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Trained:
    """Of a training.

    Attributes:
        losses: of every line of its log, base 2; NaN where fairseq wrote none.
        norms: of the gradients, of every line; NaN where fairseq wrote none.
        words_per_second: median of the lines after the warm-up; None: there is none.
        updates_per_second: the same.
        peak_gib: the most memory of tensors after the warm-up; None on the CPU.
        said: the plugin's own lines, each once.
    """

    losses: list[float]
    norms: list[float]
    words_per_second: float | None
    updates_per_second: float | None
    peak_gib: float | None
    said: list[str]

    @property
    def is_finite(self) -> bool:
        return bool(self.losses) and all(math.isfinite(loss) for loss in self.losses)


@dataclass(frozen=True)
class Translated:
    """Of ``fairseq-generate``.

    Attributes:
        hypotheses: sentence number -> (score in base 2, words) of the best.
        tokens: in them.
        tokens_per_second: of the search, as fairseq tells it.
        said: the plugin's own lines, each once.
    """

    hypotheses: dict[int, tuple[float, str]]
    tokens: int
    tokens_per_second: float
    said: list[str]


def records(text: str, kind: str = "train_inner") -> list[dict[str, Any]]:
    """The JSON lines of a log made with ``--log-format json``, in order."""
    found = []
    for line in text.splitlines():
        if f"| {kind} |" in line and "{" in line:
            try:
                found.append(json.loads(line[line.index("{") :]))
            except ValueError:  # a line that another process wrote into
                continue
    return found


def trained(text: str, warm_up: int) -> Trained:
    """Read a training's log.

    Args:
        text: all that it said.
        warm_up: updates; lines up to this one tell no speed and no memory.
    """
    lines = records(text)
    warm = [line for line in lines if int(float(line["num_updates"])) > warm_up]
    return Trained(
        losses=[float(line.get("loss", math.nan)) for line in lines],
        norms=[float(line.get("gnorm", math.nan)) for line in lines],
        words_per_second=_median(warm, "wps"),
        updates_per_second=_median(warm, "ups"),
        peak_gib=_peak(text, warm),
        said=plugin_lines(text),
    )


def _median(lines: list[dict[str, Any]], key: str) -> float | None:
    values = [float(line[key]) for line in lines if line.get(key) is not None]
    return statistics.median(values) if values else None


def _peak(text: str, lines: list[dict[str, Any]]) -> float | None:
    # fairseq tells what is free, of the card's whole memory, which it tells once.
    total = re.search(r"total memory = ([\d.]+) GB", text)
    free = [float(line["gb_free"]) for line in lines if "gb_free" in line]
    return float(total[1]) - min(free) if total and free else None


def plugin_lines(text: str) -> list[str]:
    """What follows "mhe: " in a log, each once, in order."""
    return list(dict.fromkeys(re.findall(r"mhe: (.*)", text)))


def translated(text: str) -> Translated | None:
    """Read what ``fairseq-generate`` printed; None where it did not come to its end."""
    end = re.search(r"Translated .* sentences \(([\d,]+) tokens\) in .*, ([\d.]+) tokens/s\)", text)
    if end is None:
        return None
    found = {}
    for line in text.splitlines():
        if line.startswith("H-"):
            number, score, words = line.split("\t")
            found[int(number[2:])] = float(score), words
    return Translated(found, int(end[1].replace(",", "")), float(end[2]), plugin_lines(text))


def apart(one: Trained, other: Trained) -> tuple[float, float]:
    """How far two trainings of as many lines are from each other: the largest difference of losses, and of
    gradients' norms as a share of the norm."""
    losses = [abs(a - b) for a, b in zip(one.losses, other.losses, strict=True)]
    norms = [abs(a - b) / max(b, 1e-9) for a, b in zip(one.norms, other.norms, strict=True)]
    return _largest(losses), _largest(norms)


def _largest(values: list[float]) -> float:
    """NaN where one is, which ``max`` would lose."""
    return math.nan if any(map(math.isnan, values)) else max(values)


def unlike(one: Trained, other: Trained, losses: float, norms: float) -> str:
    """In what two trainings differ by more than this; "" for nothing."""
    if len(one.losses) != len(other.losses) or not one.losses:
        return f"{len(one.losses)} lines of the log, and {len(other.losses)}"
    loss, norm = apart(one, other)
    # Written so that NaN is a difference.
    if not loss <= losses:
        return f"losses {one.losses} and {other.losses}"
    return "" if norm <= norms else f"norms of gradients {one.norms} and {other.norms}"
