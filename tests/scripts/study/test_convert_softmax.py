"""scripts/study/convert_softmax.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "convert_softmax.py")]


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--study", str(source / "study.toml"), "--source", str(source), "--out", str(out)]
    run_command([*SCRIPT, *words, "--heads", "cascade,softmax", "--updates", "20"])
    record = read_record(out / "record.json")
    stock, cascade, trained, softmax, _ = record["rows"]
    assert [row["updates"] for row in record["rows"]] == [20, 0, 2, 0, 2]
    # The converted softmax is the model it was, a cascade nearly so; both differ once trained on.
    assert softmax["bits"] == pytest.approx(stock["bits"], abs=0.01)
    assert (softmax["bleu"], softmax["chrf"], softmax["p"]) == (stock["bleu"], stock["chrf"], None)
    assert (
        abs(cascade["bits"] - stock["bits"]) < 0.5 and trained["model"] == "converted to cascade, trained on"
    )
    searched = [
        line for line in record["commands"] if line.startswith("fairseq-generate") and "cascade" in line
    ]
    assert len(searched) == 2 and all("--task mhe_translation" in line for line in searched)


def test_bad_heads_are_one_sentence() -> None:
    done = run_command([*SCRIPT, "--source", "x", "--heads", "product"], check=False)
    assert done.returncode == 2
    assert "--heads: takes different ones of softmax, cascade, sampling; got product" in done.stderr
