"""scripts/study/less_bias.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "less_bias.py")]

VARIANTS = """
[variants.sampling-predicted]
train = '''--task mhe_translation --arch mhe_transformer --criterion mhe_cross_entropy
  --mhe-head sampling --mhe-codebook {codes} --mhe-exact-last 0 --mhe-groups 4'''
assign = "--by cluster"
[variants.softmax-linear]
train = '''--task mhe_translation --arch mhe_transformer --criterion mhe_cross_entropy
  --mhe-head softmax --mhe-tie linear'''
"""


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text((source / "study.toml").read_text() + VARIANTS)
    words = ["--study", str(study), "--source", str(source), "--out", str(out)]
    run_command([*SCRIPT, *words, "--updates", "40", "--rounds", "1", "--turn", "1"])
    record = read_record(out / "record.json")
    usual, growing, corrected, exact = record["rows"]
    assert usual["way"] == "sampling-predicted, as it is" and usual["length"] == 1
    assert usual["behind"] is None and growing["behind"] is not None
    assert len({row["bits"] for row in record["rows"]}) == 4  # each is a training of its own
    assert corrected["update"] is None and all(row["update"] > 0 for row in (usual, growing, exact))
    stages = [line for line in record["commands"] if "growing" in line and "fairseq-train" in line]
    groups, ends = (
        [int(re.findall(flag + r" (\d+)", line)[-1]) for line in stages]
        for flag in ("--mhe-groups", "--max-update")
    )
    assert ends == [20, 30, 40] and groups == [2, 4, 8]
    # One training that goes on, not three.
    said = (out / "sampling-predicted-growing-1" / "train.log").read_text()
    assert said.count("Loaded checkpoint") == 2
    (train,) = (line for line in record["commands"] if "--user-dir scripts/study/second_order" in line)
    assert train.startswith("fairseq-train")


def test_bad_input_is_one_sentence(source: Path, tmp_path: Path) -> None:
    words = ["--study", str(source / "study.toml"), "--source", str(source), "--out", str(tmp_path / "out")]
    done = run_command([*SCRIPT, *words, "--updates", "30"], check=False)
    assert done.returncode == 1 and "--updates must be a multiple of 40, got 30" in done.stderr
    done = run_command([*SCRIPT, *words, "--updates", "40", "--sampling", "none"], check=False)
    assert done.returncode == 1 and "none" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "data-bin").exists()
