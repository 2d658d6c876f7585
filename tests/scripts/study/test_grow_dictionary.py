"""scripts/study/grow_dictionary.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = ["python", str(REPO / "scripts" / "study" / "grow_dictionary.py")]
    words = ["--study", str(source / "study.toml"), "--source", str(source), "--out", str(out)]
    sizes = ["--small", "200", "--large", "300", "--updates", "40"]
    run_command([*script, *words, *sizes])
    record = read_record(out / "record.json")
    rows = record["rows"]
    assert [(row["model"], row["vocab"], row["updates"]) for row in rows] == [
        ("trained", 200, 40),
        ("grown", 300, 0),
        ("grown, trained on", 300, 4),
        ("from nothing, its schedule", 300, 4),
        ("from nothing, the study's schedule", 300, 4),
    ]
    assert all(4 < row["bits"] < 12 for row in rows)
    assert [row["p"] is None for row in rows] == [True, True, True, False, False]
    # The grown one and those from nothing read the same data, and differ in what they begin with.
    trained, fresh = (
        next(line for line in record["commands"] if name in line)
        for name in ("larger-dictionary/grown-1", "larger-dictionary/nothing-1")
    )
    assert "--finetune-from-model" in trained and "--finetune-from-model" not in fresh
    assert trained.split()[1] == fresh.split()[1] == "larger-dictionary/300/data-bin"
    assert "stay" in record["data"]
