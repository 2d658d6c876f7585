"""scripts/compare_heads.py and scripts/time_updates.py, run for real with a tiny model."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.compare_heads import validations
from tests.helpers import REPO, TOY_SIZES, run_command
from tests.scripts.test_quickstart import settings


def script(
    name: str, *words: str, env: dict[str, str], check: bool = True
) -> subprocess.CompletedProcess[str]:
    return run_command([sys.executable, str(REPO / "scripts" / name), *words], env=env, check=check)


@pytest.mark.slow
def test_compare_prints_one_table(tmp_path: Path) -> None:
    env = settings(tmp_path / "unused")
    out = tmp_path / "compare"
    words = ("--heads", "softmax,cascade", "--updates", "4", "--out", str(out))
    printed = script("compare_heads.py", *words, env=env).stdout
    rows = {match[1]: match[0] for match in re.finditer(r"^│ (softmax|cascade) .*$", printed, re.MULTILINE)}
    assert list(rows) == ["softmax", "cascade"]
    assert "1.00x" in rows["softmax"]
    made = json.loads((out / "results.json").read_text())["heads"]
    assert [row["name"] for row in made] == ["softmax", "cascade"]
    for row in made:
        assert f"{row['bleu']:.2f}" in rows[row["name"]] and f"{row['parameters']:,}" in rows[row["name"]]
        assert len(row["seconds"]) == 30
        # torch alone is larger than this.
        assert 50e6 < row["peak_bytes"] < 8e9
        log = (out / row["name"] / "train.log").read_text()
        assert f'"valid_nll_loss": "{row["nll"]:g}"' in log
    # Tied: the softmax has no parameters of its own, the cascade has those of its groups.
    assert made[0]["output_parameters"] == 0 < made[1]["output_parameters"]
    assert made[1]["parameters"] - made[0]["parameters"] == made[1]["output_parameters"]
    medians = [statistics.median(row["seconds"]) for row in made]
    assert f"{medians[0] / medians[1]:.2f}x" in rows["cascade"]
    assert (out / "cascade" / "hypotheses.tgt").read_bytes().count(b"\n") == TOY_SIZES["test"]
    assert (out / "cascade" / "codes").exists() and not (out / "softmax" / "codes").exists()

    checkpoint = str(out / "cascade" / "checkpoints" / "checkpoint_last.pt")
    printed = script("time_updates.py", checkpoint, "--rounds", "2", "--updates", "3", env=env).stdout
    timed = json.loads(printed)
    assert timed["checkpoint"] == checkpoint and len(timed["seconds"]) == 6
    assert timed["median"] == statistics.median(timed["seconds"])


@pytest.mark.slow
def test_failed_training_is_told(tmp_path: Path) -> None:
    env = settings(tmp_path / "unused", MODEL_FLAGS="--no-such-flag")
    done = script(
        "compare_heads.py", "--heads", "cascade", "--out", str(tmp_path / "c"), env=env, check=False
    )
    assert done.returncode == 1
    assert "compare_heads.py: error: cascade: training or translation failed" in done.stderr
    assert "no-such-flag" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "words, said",
    [
        (("--heads", "softmax,adaptive"), "got softmax,adaptive"),
        (("--heads", "softmax,softmax"), "different ones"),
        (("--updates", "0"), "--updates must be at least 1, got 0"),
        (("--jobs", "-1"), "--jobs must be at least 1, got -1"),
    ],
)
def test_bad_arguments(tmp_path: Path, words: tuple[str, ...], said: str) -> None:
    out = tmp_path / "compare"
    done = script("compare_heads.py", *words, "--out", str(out), env={}, check=False)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not out.exists()


def test_time_updates_bad_input(tmp_path: Path) -> None:
    done = script("time_updates.py", str(tmp_path / "none.pt"), env={}, check=False)
    assert done.returncode == 1 and f"there is no {tmp_path / 'none.pt'}" in done.stderr
    broken = tmp_path / "broken.pt"
    broken.write_text("not a checkpoint")
    done = script("time_updates.py", str(broken), env={}, check=False)
    assert done.returncode == 1 and f"{broken}: cannot be trained on" in done.stderr


def test_validations_of_a_resumed_training(tmp_path: Path) -> None:
    """A validation made twice counts once, with its later figures; they come in order of updates."""
    log = tmp_path / "train.log"
    log.write_text(
        "a line of text with valid_num_updates in it\n"
        '{"epoch": 1, "valid_nll_loss": "5", "valid_num_updates": "20"}\n'
        '{"epoch": 1, "valid_nll_loss": "7", "valid_num_updates": "10"}\n'
        '{"epoch": 1, "train_nll_loss": "1"}\n'
        '{"epoch": 1, "valid_nll_loss": "6", "valid_num_updates": "10"}\n'
    )
    assert [values["valid_nll_loss"] for values in validations(log)] == ["6", "5"]
