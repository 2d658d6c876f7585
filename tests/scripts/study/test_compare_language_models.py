"""scripts/study/compare_language_models.py, run for real with a tiny model."""

from __future__ import annotations

import json
import math
import re
import subprocess
from pathlib import Path

import pytest

from scripts.study.compare_language_models import Run, perplexity, updates_to
from tests.helpers import REPO, run_command

TINY = (
    "--decoder-layers 1 --decoder-embed-dim 16 --decoder-input-dim 16 --decoder-output-dim 16 "
    "--decoder-ffn-embed-dim 16 --decoder-attention-heads 2 --batch-size 4 --tokens-per-sample 16 "
    "--log-interval 2 --cpu"
)


def script(data: Path, out: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["python", str(REPO / "scripts" / "study" / "compare_language_models.py")]
    flags = ["--data", str(data), "--out", str(out), "--user-dir", str(REPO / "mhe_fairseq"), *words]
    return run_command([*command, *flags], check=check)


def run(valid: list[float], test: float = 5.0, seed: int = 1) -> Run:
    return Run("softmax", seed, [], [100 * (i + 1) for i in range(len(valid))], valid, test, {}, "")


@pytest.mark.slow
def test_compare_prints_one_table_and_records_every_run(lm_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--heads", "softmax,cascade", "--seeds", "1,2", "--updates", "4", "--validate-every", "2"]
    words += ["--rounds", "1", "--threads", "1", f"--train-flags={TINY}"]
    printed = script(lm_data, out, *words).stdout
    rows = {match[1]: match[0] for match in re.finditer(r"^│ (softmax|cascade) .*$", printed, re.MULTILINE)}
    assert list(rows) == ["softmax", "cascade"]
    assert "+0.0%" in rows["softmax"] and "1.00x" in rows["softmax"]
    runs = [Run(**json.loads(line)) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [(each.head, each.seed) for each in runs] == [
        ("softmax", 1), ("cascade", 1), ("softmax", 2), ("cascade", 2)
    ]  # fmt: skip
    for head in rows:
        mean, _ = perplexity([each for each in runs if each.head == head])
        assert f"{mean:.1f}" in rows[head]
    for each in runs:
        assert each.updates == [2, 4]
        folder = out / f"{each.head}-{each.seed}"
        base_2 = re.search(r"Loss \(base 2\): ([\d.]+)", (folder / "eval.log").read_text())
        assert base_2 is not None and each.test_nats == float(base_2[1]) * math.log(2)
        listed = (folder / "commands.sh").read_text()
        assert all(command in listed for command in each.commands[-2:])
        assert f"--seed {each.seed}" in each.commands[-2]
    assert runs[0].valid_nats != runs[2].valid_nats, "two seeds, one model?"
    assert (out / "codes-cluster").is_file()

    # Again, as after an interruption of the last scoring: nothing is trained, not an update more.
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/train.log")}
    (out / "cascade-2" / "eval.log").unlink()
    script(lm_data, out, *words)
    assert made == {path: path.stat().st_mtime_ns for path in out.glob("*/train.log")}
    again = [Run(**json.loads(line)) for line in (out / "results.jsonl").read_text().splitlines()]
    assert again == runs
    done = script(lm_data, out, *words, "--validate-every", "4", check=False)
    assert done.returncode == 1 and "was started with other train" in done.stderr


@pytest.mark.slow
def test_failed_training_is_told(lm_data: Path, tmp_path: Path) -> None:
    words = ["--threads", "1", "--train-flags=--no-such-flag"]
    done = script(lm_data, tmp_path / "out", *words, check=False)
    assert done.returncode == 1
    assert "compare_language_models.py: error: train: the command failed with status 2; see" in done.stderr
    assert "no-such-flag" in done.stderr.splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--heads", "softmax,adaptive"], "got softmax,adaptive"),
        (["--seeds", "1,two"], "--seeds takes whole numbers such as 1,2,3; got 1,two"),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--validate-every", "0"], "--validate-every must be at least 1, got 0"),
        ([], "there is no dict.txt"),
    ],
)
def test_bad_arguments(tmp_path: Path, words: list[str], said: str) -> None:
    done = script(tmp_path, tmp_path / "out", *words, check=False)
    assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_updates_to_a_loss() -> None:
    falling = run([8.0, 6.0, 5.0])
    assert updates_to(falling, 6.0) == 200
    assert updates_to(falling, 7.0) == 150
    assert updates_to(falling, 5.25) == 275
    assert updates_to(falling, 9.0) == 100
    assert updates_to(falling, 4.9) == math.inf


def test_perplexity_over_seeds() -> None:
    runs = [run([], math.log(100)), run([], math.log(121), seed=2)]
    mean, spread = perplexity(runs)
    assert mean == pytest.approx(110) and spread == pytest.approx(10.5)
