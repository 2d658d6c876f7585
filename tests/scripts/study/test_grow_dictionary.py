"""scripts/study/grow_dictionary.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from scripts.study.grow_dictionary import printed_line, validated_bits, with_flags
from scripts.study.report_records import read_record
from scripts.study.study_config import StudyError
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    script = [sys.executable, str(REPO / "scripts" / "study" / "grow_dictionary.py")]
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


def test_what_the_commands_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('... "valid_nll_loss": "9.5"}\n... {"epoch": 1, "valid_nll_loss": "8.25"}\n')
    assert validated_bits(log) == 8.25
    with pytest.raises(StudyError, match="does not end with a fairseq-train command"):
        printed_line(log)
    log.write_text(
        "grown.pt: ...\nto train it on:\n  fairseq-train data --lr 1 --adam-betas '(0.9, 0.98)'\n\n"
    )
    line = printed_line(log)
    assert with_flags(line, lr="2", adam_betas=None) == ["fairseq-train", "data", "--lr", "2"]
    log.write_text(json.dumps({}))
    with pytest.raises(StudyError, match="no loss of a validation"):
        validated_bits(log)
