"""scripts/study/deployment_speed.py, run for real with tiny models."""

from __future__ import annotations

import json
import statistics
import subprocess
from pathlib import Path

import pytest

from tests.commands import CRITERION, train
from tests.helpers import REPO, run_command

SCRIPT = REPO / "scripts" / "study" / "deployment_speed.py"


def script(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    named = {"sampling": "sampling.pt", "cascade": "cascade.pt", "data": "data", "pieces": "test.src"}
    flags = [word for name, file in named.items() for word in (f"--{name}", str(folder / file))]
    line = ["python", str(SCRIPT), *flags, "--reference", str(folder / "test.tgt"), "-s", "src"]
    return run_command([*line, "-t", "tgt", "--threads", "1", *words], check=False)


@pytest.mark.slow
def test_every_way_is_timed(toy_data: Path, tmp_path: Path) -> None:
    pytest.importorskip(
        "ctranslate2", reason="ctranslate2 is not installed: pip install -c constraints.txt -e .[deploy]"
    )
    for head in ("sampling", "cascade"):
        flags = [
            "--task",
            "mhe_translation",
            "--mhe-head",
            head,
            "--max-update",
            "40",
            "--no-epoch-checkpoints",
        ]
        train(toy_data, tmp_path / head, *CRITERION, *flags)
        (tmp_path / f"{head}.pt").symlink_to(tmp_path / head / "checkpoint_best.pt")
    (tmp_path / "data").symlink_to(toy_data)
    for side in ("src", "tgt"):
        (tmp_path / f"test.{side}").symlink_to(toy_data.parent / "text" / f"test.{side}")
    done = script(tmp_path, "--rounds", "2")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["way"] for row in rows] == [
        "fairseq", "compact search", "ctranslate2 float32", "ctranslate2 int8",
    ]  # fmt: skip
    for row in rows:
        assert row["sentences"] == 30 and len(row["seconds"]) == 2
        assert row["median"] == statistics.median(row["seconds"])
    stock, _, full, small = rows
    assert stock["bleu"] == pytest.approx(full["bleu"], abs=1e-6)
    assert small["bytes"] < full["bytes"]


def test_bad_input(tmp_path: Path) -> None:
    done = script(tmp_path)
    assert done.returncode == 1 and done.stdout == ""
    assert f"deployment_speed.py: error: there is no {tmp_path / 'sampling.pt'}" in done.stderr
    for name in ("sampling.pt", "cascade.pt", "data", "test.src", "test.tgt"):
        (tmp_path / name).write_text("x")
    done = script(tmp_path, "--rounds", "0")
    assert done.returncode == 1 and "--rounds must be at least 1, got 0" in done.stderr
    done = script(tmp_path)
    assert done.returncode == 1 and "mhe export" in done.stderr and done.stderr.count("\n") == 1
