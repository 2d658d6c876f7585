"""What a training needs to go on, written whole by the first process whether a table is split or not."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sharded.state import ShardedHead

#: Arguments that a training that goes on may change.
FREE = ("data", "out", "device", "workers", "shard")


class Model(nn.Module):
    """Images -> features -> a loss for every image.

    Args:
        network: images (N, C, S, S) -> features (N, dim).
        head: an ``OutputHead``.
        smoothing: label smoothing, 0 to 1.
    """

    def __init__(self, network: nn.Module, head: Any, smoothing: float = 0.0) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.smoothing = smoothing

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        loss = self.head(self.network(images), labels, smoothing=self.smoothing > 0)
        if loss.smooth is None:
            return loss.nll
        return (1 - self.smoothing) * loss.nll + self.smoothing * loss.smooth


def optimisers(model: Model, lr: float, decay: float) -> dict[str, torch.optim.AdamW]:
    """One for the network and one for the output layer."""
    parts = {"network": model.network, "head": model.head}
    return {
        name: torch.optim.AdamW(part.parameters(), lr=lr, weight_decay=decay, betas=(0.9, 0.99))
        for name, part in parts.items()
    }


def save(
    path: Path,
    model: Model,
    steps: dict[str, torch.optim.AdamW],
    progress: dict[str, Any],
    args: dict[str, Any],
    classes: list[str],
    is_first: bool,
) -> None:
    """Collective where the table is split; the first process writes."""
    head = model.head
    states = {name: each.state_dict() for name, each in steps.items()}
    if isinstance(head, ShardedHead):
        own = head.whole_state()
        # A new dictionary: the optimiser goes on with its own.
        place = _place_of_table(head)
        kept = dict(states["head"]["state"].get(place, {}))
        for name in sorted(kept):
            if kept[name].dim() > 0:
                kept[name] = head.gather_rows(kept[name])
        states["head"]["state"] = {**states["head"]["state"], place: kept}
    else:
        own = head.state_dict()
    if not is_first:
        return
    state = {
        "network": model.network.state_dict(), "head": own, "optimisers": states, "progress": progress,
        "args": {key: value for key, value in args.items() if key not in FREE}, "classes": classes,
    }  # fmt: skip
    temporary = path.with_name(path.name + ".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


def read(path: Path) -> dict[str, Any]:
    """What ``save`` wrote.

    Raises:
        MHEError: it cannot be read.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        assert state.keys() >= {"network", "head", "optimisers", "progress", "args", "classes"}
    except FileNotFoundError:
        raise MHEError(f"there is no checkpoint {path}") from None
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, AssertionError):
        raise MHEError(
            f"{path} is damaged or no checkpoint of this program; remove it to train anew"
        ) from None
    return state


def check_same(path: Path, state: dict[str, Any], args: dict[str, Any], classes: list[str]) -> None:
    """Raises:
    MHEError: the training that wrote the checkpoint was another one.
    """
    changed = [
        f"{name} {state['args'].get(name)} -> {value}"
        for name, value in args.items()
        if name not in FREE and state["args"].get(name) != value
    ]
    if state["classes"] != classes:
        changed.append(f"{len(state['classes'])} classes -> {len(classes)}, or other names")
    if changed:
        raise MHEError(
            f"{path} is of a training with other arguments ({'; '.join(changed)}); give the same, or another "
            "--out"
        )


def load(model: Model, steps: dict[str, torch.optim.AdamW], state: dict[str, Any]) -> None:
    """Go on from ``read``."""
    head = model.head
    model.network.load_state_dict(state["network"])
    head.load_state_dict(state["head"])
    for name, each in steps.items():
        kept = state["optimisers"][name]
        if name == "head" and isinstance(head, ShardedHead):
            own = kept["state"].get(_place_of_table(head), {})
            for key, value in own.items():
                if value.dim() > 0:
                    own[key] = head.own_rows(value)
        each.load_state_dict(kept)


def _place_of_table(head: ShardedHead) -> int:
    """Of the split table among the head's parameters."""
    return [each is head.sharded.weight for each in head.parameters()].index(True)
