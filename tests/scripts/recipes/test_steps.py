"""What scripts/recipes/steps.sh does that no run on a healthy machine shows."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from tests.helpers import run_command

SOURCE = "NAME=run.sh; source scripts/recipes/steps.sh; "


@pytest.mark.parametrize(
    ("status", "said"),
    [(1, "error: another run is working in "), (71, "cannot be locked; make sure"), (0, "")],
)
def test_a_file_system_without_locks(tmp_path: Path, status: int, said: str) -> None:
    """flock's status is 1 where another has the lock, and another one where it cannot lock."""
    script = SOURCE + f"flock() {{ return {status}; }}; WORK=$1; open_work 'a run' 'give --out'; echo on"
    done = run_command(["bash", "-euc", script, "_", str(tmp_path / "out")], check=False)
    assert (done.returncode, done.stdout) == ((1, "") if status == 1 else (0, "on\n"))
    assert said in done.stderr and bool(said) == bool(done.stderr)


def test_the_newest_whole_checkpoint_takes_the_place_of_a_cut_one(tmp_path: Path) -> None:
    folder = tmp_path / "a folder of checkpoints"
    folder.mkdir()
    for number in (2, 4, 6):
        path = folder / f"checkpoint_1_{number}.pt"
        with zipfile.ZipFile(path, "w") as file:
            file.writestr("updates", str(number))
        os.utime(path, (number, number))
    (folder / "checkpoint_1_6.pt").write_bytes(b"PK cut short")
    os.utime(folder / "checkpoint_1_6.pt", (6, 6))
    (folder / "checkpoint_last.pt").write_bytes(b"PK cut short")
    done = run_command(
        ["bash", "-euo", "pipefail", "-c", SOURCE + 'mend_last_checkpoint "$1"', "_", str(folder)]
    )
    assert f"continuing from {folder / 'checkpoint_1_4.pt'}" in done.stdout
    with zipfile.ZipFile(folder / "checkpoint_last.pt") as file:
        assert file.read("updates") == b"4"
