"""Recipes of examples/translation as commands, and what their machinery makes of a machine."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import REPO, run_command

RECIPES = REPO / "examples" / "translation"
QUICK = {"VALIDATE_EVERY": "2", "LOG_INTERVAL": "1", "no_proxy": "127.0.0.1"}
SIZES = ["--scale", "tiny", "--cpu", "--vocab", "700", "--updates", "4"]


def run_recipe(
    recipe: str, out: Path, *more: str, check: bool = True, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    line = [str(RECIPES / recipe / "run.sh"), "--out", str(out), *SIZES, *more]
    return run_command(line, check=check, env={**QUICK, **(env or {})})


def refused(done: subprocess.CompletedProcess[str], *said: str, script: str = "run.sh") -> None:
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    last = done.stderr.rstrip("\n").splitlines()[-1]
    assert last.startswith(f"{script}: error: "), done.stderr[-2000:]
    for text in said:
        assert text in last


def commands(printed: str) -> list[str]:
    return [line[2:].split()[0] for line in printed.splitlines() if line.startswith("$ ")]


def settings(
    script: str, env: Mapping[str, str] | None = None, check: bool = True, gpus: int = 8
) -> subprocess.CompletedProcess[str]:
    """What scripts/recipes/recipe.sh makes of an environment where a process sees so many GPUs."""
    said = 'echo "$ONLY|${BATCH[*]}|${DEVICE[*]}|${DISTRIBUTED[*]}" >&2'
    before = (
        f"HEADS=cascade; source scripts/recipes/recipe.sh; python() {{ echo {gpus}; }}; shared_defaults; "
    )
    fake = 'scontrol() { [[ $* == "show hostnames node[3-4]" ]] && printf "node3\\nnode4\\n"; }; '
    return run_command(["bash", "-euc", f"{before}{fake}{script}; {said}"], env=env, check=check)
