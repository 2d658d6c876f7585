"""scripts/study/exact_end.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "exact_end.py")]

SAMPLING = '''
[variants.sampling]
train = """--task mhe_translation --arch mhe_transformer --criterion mhe_cross_entropy
  --mhe-head sampling --mhe-tie exact"""
'''


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text((source / "study.toml").read_text() + SAMPLING)
    words = ["--study", str(study), "--source", str(source), "--out", str(out)]
    run_command([*SCRIPT, *words, "--updates", "40", "--shares", "0.05"])
    record = read_record(out / "record.json")
    softmax, whole, exact = record["rows"]
    assert [row["share"] for row in record["rows"]] == [None, 0, 0.05]
    assert softmax["behind"] is None and softmax["length"] == 1
    assert 4 < exact["bits"] < 12 and exact["bits"] != whole["bits"]
    # The last two updates only: the rest is of the other training, and so are two of those that are averaged.
    (train,) = (line for line in record["commands"] if "--restore-file" in line)
    assert "--mhe-exact-last 0.05" in train
    assert "--restore-file exact-end/sampling-1/checkpoints/checkpoint_2_38.pt" in train
    saved = {path.name for path in (out / "sampling-0.05-1" / "checkpoints").glob("checkpoint_*_*.pt")}
    assert saved == {f"checkpoint_2_{update}.pt" for update in (37, 38, 39)}
    said = (out / "sampling-0.05-1" / "train.log").read_text()
    assert said.count("exact softmax from update 39 on") == 1


@pytest.mark.slow
def test_bad_shares_are_one_sentence() -> None:
    done = run_command([*SCRIPT, "--source", "x", "--shares", "1.5"], check=False)
    assert done.returncode == 2
    assert "--shares: takes different numbers from 0 to 1; got 1.5" in done.stderr


@pytest.mark.slow
def test_an_unknown_variant_is_one_sentence(tmp_path: Path) -> None:
    words = ["--source", "x", "--out", str(tmp_path / "out"), "--variants", "sampling,other"]
    done = run_command([*SCRIPT, *words], check=False)
    assert done.returncode == 1
    assert "--variants takes different ones of softmax, " in done.stderr
    assert "got softmax,sampling,other" in done.stderr
