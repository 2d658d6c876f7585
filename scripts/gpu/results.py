"""What a check on a GPU found: a JSON file, written whole after each part, and tables in markdown."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mhe_fairseq.bench.machine import cpu_model
from mhe_fairseq.heads.kernels.dispatch import triton_version
from scripts.gpu.parts import Outcome, Settings

_ROOT = Path(__file__).resolve().parent.parent.parent


def where(settings: Settings) -> dict[str, Any]:
    """What was checked, and on what."""
    is_cuda = settings.device.type == "cuda"
    return {
        "commit": commit(),
        "card": torch.cuda.get_device_name(settings.device) if is_cuda else f"{cpu_model()} (no GPU)",
        "torch": torch.__version__,
        "triton": triton_version(),
        "python": platform.python_version(),
        "smoke": settings.smoke,
    }


def commit() -> str:
    """Of the checkout, "unknown" where it is none."""
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), "describe", "--always", "--dirty"],
            capture_output=True, text=True, timeout=20,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    return done.stdout.strip() or "unknown"


def heading(found: dict[str, Any]) -> str:
    """One line that says what the tables are of."""
    smoke = "smoke test, times mean nothing: " if found["smoke"] else ""
    return (
        f"{smoke}{found['card']}, torch {found['torch']}, triton {found['triton']}, "
        f"Python {found['python']}, commit {found['commit']}"
    )


def as_dict(outcome: Outcome, title: str) -> dict[str, Any]:
    return {
        "title": title,
        "seconds": round(outcome.seconds, 1),
        "failed": [check["name"] for check in outcome.failed],
        "not_reached": outcome.missed,
        "not_here": outcome.absent,
        "checks": outcome.checks,
    }


def write(path: Path, found: dict[str, Any]) -> None:
    """Write the file so that a reader, at any time, sees a whole one."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """In markdown."""
    lines = [f"**{title}**", "", f"| {' | '.join(header)} |", f"|{' --- |' * len(header)}"]
    lines += [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"
