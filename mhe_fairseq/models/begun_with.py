"""What is taken over of a model that a training begins with, before its weights are read."""

from __future__ import annotations

import math
from typing import Any

from mhe_fairseq.coding.peek import peek


def lengths_begun_with(args: Any, size: int) -> tuple[int, ...] | None:
    """The codebook's lengths of the model that ``--finetune-from-model`` names: its dictionary may have had
    a symbol more, for which other lengths were planned.

    Args:
        args: of a model.
        size: tokens of the dictionary.

    Returns:
        None: no such model, it has none, or they are too short.
    """
    path = getattr(args, "finetune_from_model", None)
    state = peek(path) if path else None
    if state is None:
        return None
    weights = state["model"].items()
    found = next((each for name, each in weights if name.endswith("head.codebook_lengths")), None)
    lengths = () if found is None else tuple(found.tolist())
    return lengths if lengths and math.prod(lengths) >= size else None
