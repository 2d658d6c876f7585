"""scripts/study/finish_softmax.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.finish_softmax import rate_after
from scripts.study.report_records import read_record
from scripts.study.study_config import StudyError
from tests.helpers import REPO, run_command
from tests.scripts.study.test_exact_end import SAMPLING
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "finish_softmax.py")]


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text((source / "study.toml").read_text() + SAMPLING)
    words = ["--study", str(study), "--source", str(source), "--out", str(out)]
    words += ["--updates", "20", "--last", "4", "--variants", "cascade,sampling"]
    assert "$ fairseq" in run_command([*SCRIPT, *words]).stdout
    record = read_record(out / "record.json")
    assert [row["model"] for row in record["rows"]] == [
        "softmax",
        "cascade",
        "cascade, converted after its end",
        "cascade, exported, its end as a softmax",
        "cascade, converted, its end as a softmax",
        "sampling",
        "sampling, its end exact",
    ]
    softmax, *others = record["rows"]
    assert softmax["behind"] is None and None not in {row["p"] for row in others}
    # The end of a training in several ways.
    before = [row["before"] for row in record["rows"]]
    assert before == [before[0]] + [before[1]] * 4 + [before[5]] * 2 and len(set(before)) == 3
    assert len({row["bits"] for row in record["rows"]}) == 7
    ends = [line for line in record["commands"] if "--restore-file" in line]
    flags = (
        "--reset-optimizer",
        "--mhe-head",
        "--share-all-embeddings",
        "--share-decoder-input-output-embed",
    )
    # What the cascade's encoder reads becomes a table of its own.
    own, exported, converted = (False, True, True, False), (True, False, False, True), (True, *[False] * 3)
    assert [tuple(flag in line for flag in flags) for line in ends] == [
        (False, False, True, False),
        *(own, exported, converted),
        *(own, own),
    ]
    # A fixed rate of 0.001 falls to zero from update 16 to 20, or with a new optimiser from 0 to 4.
    assert ["--lr 0.005 " in line for line in ends] == [True, True, False, False, True, True]
    assert all("--lr 0.001 " in line for line in ends[2:4])
    assert "--mhe-exact-last 0.2 " in ends[5] and "--mhe-exact-last 0.2 " not in ends[4]
    rates = [line for line in (out / "cascade-1" / "train.log").read_text().splitlines() if '"lr"' in line]
    assert '"lr": "0"' in rates[-1]
    # Of these each one's own; all of them are there already.
    assert "$ fairseq" not in run_command([*SCRIPT, *words, "--own"]).stdout
    own_rows = read_record(out / "record.json")["rows"]
    assert own_rows == [row for row in record["rows"] if "," not in row["model"]]


def test_rates() -> None:
    words = ["--lr", "3e-3", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "400"]
    assert rate_after(words, 6400) == pytest.approx(7.5e-4)
    assert rate_after(words, 100) == pytest.approx(7.5e-4)
    assert rate_after(["--lr", "0.5"], 100) == 0.5
    with pytest.raises(StudyError, match="--lr-scheduler cosine"):
        rate_after(["--lr", "1", "--lr-scheduler", "cosine"], 10)


@pytest.mark.slow
def test_bad_flags_are_one_sentence(source: Path, tmp_path: Path) -> None:
    words = ["--study", str(source / "study.toml"), "--source", str(source), "--out", str(tmp_path / "out")]
    for more, said in (
        (["--last", "8"], "--last must be 1 to 7, below --updates; got 8"),
        (
            ["--last", "4", "--variants", "no"],
            "--variants takes different ones of softmax, cascade; got softmax,no",
        ),
    ):
        done = run_command([*SCRIPT, *words, "--updates", "8", *more], check=False)
        assert done.returncode == 1 and f"finish_softmax.py: error: {said}" in done.stderr
