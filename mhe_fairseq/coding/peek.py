"""What a checkpoint says of itself, looked at before fairseq reads it in earnest."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

import torch


def peek(path: str | PathLike[str]) -> dict[str, Any] | None:
    """A checkpoint as saved, weights mapped, so that they are not read twice.

    Returns:
        None: whatever is wrong with it, who loads it in earnest says it better.
    """
    try:
        state = torch.load(path, map_location="cpu", mmap=True)
    except Exception:
        return None
    return state if isinstance(state, dict) and isinstance(state.get("model"), dict) else None


def settings_of(state: dict[str, Any], section: str) -> Any:
    """Those of "model" or "task"; checkpoints of old have one namespace for all."""
    return (state.get("cfg") or {section: state.get("args")}).get(section)


def setting(settings: Any, name: str) -> Any:
    """One of them, an object's or a dictionary's; None where there is none."""
    return settings.get(name) if isinstance(settings, Mapping) else getattr(settings, name, None)
