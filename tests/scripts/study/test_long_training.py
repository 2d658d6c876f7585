"""scripts/study/long_training.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.common.curves import LogError
from scripts.study.long_training import lengths, pace
from scripts.study.report_records import read_record
from scripts.study.study_config import StudyError
from tests.helpers import REPO, run_command
from tests.scripts.study.test_exact_end import SAMPLING
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "long_training.py")]


@pytest.mark.slow
def test_a_record_from_text_that_goes_on(source: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text((source / "study.toml").read_text() + SAMPLING)
    words = [*SCRIPT, "--study", str(study), "--source", str(source), "--out", str(out)]
    words += ["--every", "2", "--exact", "0.25"]
    run_command([*words, "--only", "softmax", "--updates", "8", "--points", "8"])
    (first,) = read_record(out / "record.json")["rows"]
    assert (first["model"], first["updates"], first["behind"]) == ("softmax", 8, None)
    done = run_command([*words, "--only", "softmax,sampling@8", "--updates", "16", "--points", "8"])
    rows = read_record(out / "record.json")["rows"]
    names = ["softmax", "sampling", "sampling, finished exactly"]
    both = [(name, 8) for name in names]
    assert [(row["model"], row["updates"]) for row in rows] == [*both, ("softmax", 16)]
    # What was scored before is as it was, and was not done again.
    assert rows[0]["bits"] == first["bits"]
    assert done.stdout.count("average: done before, skipped") == 1
    # The softmax went on from its last checkpoint.
    assert "preprocess: done before, skipped" in done.stdout
    assert (out / "softmax-1" / "train.log").read_text().count("| done training in") == 2
    # Means of the last four of a training.
    at = out / "softmax-1-at-16" / "checkpoints"
    assert {path.stem.rsplit("_", 1)[1] for path in at.iterdir()} == {"10", "12", "14", "16"}
    assert "exact softmax from update 7 on" in (out / "sampling-exact-8-1" / "train.log").read_text()
    assert [row["behind"] is None for row in rows] == [True, False, False, True]
    assert all(row["minutes"] > 0 and row["length"] > 0 for row in rows)
    assert (out / "curves.png").stat().st_size > 10_000


def test_updates_of_each_variant() -> None:
    assert lengths("softmax,cascade@12000", 20000, 4000) == {"softmax": 20000, "cascade": 12000}
    for only, said in (
        ("softmax@24000", "--only softmax@24000 must be a multiple of --points, and at most --updates; got"),
        ("softmax@6000", "got 6000, 4000 and 20000"),
        ("softmax@0", "got 0, 4000 and 20000"),
        ("softmax@all", "each alone or with its updates, NAME@N; got softmax@all"),
        ("softmax,softmax@4000", "takes different variants"),
    ):
        with pytest.raises(StudyError, match=said):
            lengths(only, 20000, 4000)


def test_median_speed(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("".join(f'{{"ups": "{speed}", "num_updates": "1"}}\n' for speed in (0, 4, 2, 100)))
    assert pace(log) == 0.25
    log.write_text("nothing\n")
    with pytest.raises(LogError, match="no line with the speed"):
        pace(log)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--points", "3000"], "at least 4 times as many, for 4 checkpoints to average; got 3000 and 1000"),
        (
            ["--updates", "6000"],
            "--updates must be a multiple of --points, and at most --updates; got 6000, 4000 and 6000",
        ),
        (["--exact", "1"], "takes a number from 0 to 1; got 1"),
        (["--only", "nobody"], "--only takes different ones of"),
    ],
)
def test_bad_flags_are_one_sentence(words: list[str], said: str) -> None:
    done = run_command([*SCRIPT, "--source", "x", *words], check=False)
    assert done.returncode in (1, 2)
    assert said in done.stderr and "Traceback" not in done.stderr
