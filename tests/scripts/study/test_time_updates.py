"""scripts/study/time_updates.py, run for real with a tiny model."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPO, run_command
from tests.scripts.recipes.test_quickstart import settings


def script(
    name: str, *words: str, env: dict[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    return run_command(["python", str(REPO / "scripts" / "study" / name), *words], env=env, check=check)


@pytest.mark.slow
def test_a_checkpoints_updates_are_timed(tmp_path: Path) -> None:
    work = tmp_path / "work"
    run_command([str(REPO / "scripts" / "recipes" / "quickstart.sh")], env=settings(work))
    checkpoint = str(work / "checkpoints" / "checkpoint_last.pt")
    # Not what the server of commands has: a process of its own, which spawns as a user's does.
    threads = {"OMP_NUM_THREADS": "2"}
    printed = script("time_updates.py", checkpoint, "--rounds", "2", "--updates", "3", env=threads).stdout
    timed = json.loads(printed)
    assert timed["checkpoint"] == checkpoint and len(timed["seconds"]) == 6
    assert timed["median"] == statistics.median(timed["seconds"])
    # torch alone is larger than this.
    assert 50e6 < timed["peak_bytes"] < 8e9
    assert timed["parameters"] > timed["output_parameters"] > 0


@pytest.mark.slow
def test_time_updates_bad_input(tmp_path: Path) -> None:
    done = script("time_updates.py", str(tmp_path / "none.pt"), env={}, check=False)
    assert done.returncode == 1 and f"there is no {tmp_path / 'none.pt'}" in done.stderr
    broken = tmp_path / "broken.pt"
    broken.write_text("not a checkpoint")
    done = script("time_updates.py", str(broken), env={}, check=False)
    assert done.returncode == 1 and f"{broken}: cannot be trained on" in done.stderr
