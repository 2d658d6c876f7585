"""What a checkpoint of ours says of its training, as fairseq's own criterion would have written it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

_CRITERION_CLASSES = {
    "MHECrossEntropyCriterion": "LabelSmoothedCrossEntropyCriterion",
    "MHEMaskedLMCriterion": "MaskedLmLoss",
}

#: Beside the meters.
_KEPT = ("previous_training_time", "train_iterator", "val_loss", "best")

#: What our criterions log of a head's parts.
_OF_A_HEAD = ("_nll", "accuracy")


def history(state: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The entries that fairseq reads the number of updates from."""
    entries = []
    for each in state["optimizer_history"]:
        name = str(each.get("criterion_name"))
        entries.append(
            {
                "criterion_name": _CRITERION_CLASSES.get(name, name),
                "optimizer_name": str(each.get("optimizer_name")),
                "lr_scheduler_state": dict(each.get("lr_scheduler_state") or {}),
                "num_updates": int(each["num_updates"]),
            }
        )
    return entries


def extra_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Meters, where the training was, and its best loss."""
    extra, name = state["extra_state"], str(state["optimizer_history"][-1].get("criterion_name"))
    found: dict[str, Any] = {}
    if "metrics" in extra:
        found["metrics"] = OrderedDict(
            (group, [kept for meter in meters if (kept := _meter(meter, name)) is not None])
            for group, meters in extra["metrics"].items()
        )
    return found | {key: extra[key] for key in _KEPT if key in extra}


def _meter(meter: Any, criterion: str) -> tuple[Any, ...] | None:
    """One of fairseq's meters as its own criterion leaves it, None for one that it has not.

    Arrays are left out with their meter, the n-gram counts of the last ``--eval-bleu``: torch refuses them
    under ``weights_only=True``.
    """
    priority, name, kind, state = meter
    if any(isinstance(value, np.ndarray | np.generic) for value in state.values()):
        return None
    if criterion not in _CRITERION_CLASSES:
        return priority, name, kind, state
    # fairseq's masked_lm has but one loss.
    is_masked = _CRITERION_CLASSES[criterion] == "MaskedLmLoss"
    if name.endswith(_OF_A_HEAD) or (is_masked and name == "nll_loss"):
        return None
    if name in ("loss", "nll_loss"):
        # Its sums are tensors, and what they are divided by are whole numbers; of masked tokens tensors, too.
        if not state["count"]:  # begun, and nothing was logged since
            return priority, name, kind, state
        losses = {key: torch.tensor(float(state[key])) for key in ("val", "sum")}
        count = int(state["count"])
        state = {**state, **losses, "count": torch.tensor(count) if is_masked else count}
    return priority, name, kind, state
