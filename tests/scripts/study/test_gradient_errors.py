"""scripts/study/gradient_errors.py: on toy models, by the command."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.commands import CRITERION, train
from tests.helpers import REPO, run_command

pytestmark = pytest.mark.slow

SAMPLING = ["--mhe-head", "sampling", "--mhe-sampling", "predicted", "--share-all-embeddings"]


def script(checkpoint: Path, data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = REPO / "scripts" / "study" / "gradient_errors.py"
    return run_command(["python", str(path), str(checkpoint), "--data", str(data), *words], check=False)


def trained(data: Path, out: Path, *flags: str) -> Path:
    train(data, out, *CRITERION, *flags, "--max-update", "10", "--no-epoch-checkpoints")
    return out / "checkpoint_last.pt"


def test_more_groups_have_less_error(toy_data: Path, tmp_path: Path) -> None:
    found = []
    for groups in ("2", "7"):
        checkpoint = trained(toy_data, tmp_path / groups, *SAMPLING, "--mhe-groups", groups)
        done = script(checkpoint, toy_data, "--tokens", "64", "--draws", "16")
        assert done.returncode == 0, done.stderr
        rows = [json.loads(text) for text in done.stdout.splitlines()]
        assert [row["part"] for row in rows] == ["rows of targets", "all weights"]
        found.append(rows[-1])
        assert rows[-1]["tokens"] >= 64 and rows[-1]["length"] >= rows[0]["length"] > 0
    few, many = found
    assert few["noise"] > 2 * many["noise"] > 0


def test_bad_input(toy_data: Path, tmp_path: Path) -> None:
    done = script(tmp_path / "gone.pt", toy_data, "--draws", "1")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "gradient_errors.py: error: --draws must be at least 2, got 1"
    done = script(trained(toy_data, tmp_path, "--mhe-head", "softmax"), toy_data)
    assert done.returncode == 1
    assert "has a head of" in done.stderr and done.stderr.endswith("; give one of sampling\n")
