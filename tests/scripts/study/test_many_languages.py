"""scripts/study/many_languages.py, run for real: tiny models, pieces of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus and its study

SCRIPT = ["python", str(REPO / "scripts" / "study" / "many_languages.py")]


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    """The corpus as one pair, and a part of it as another."""
    part, out = tmp_path / "part", tmp_path / "out"
    part.mkdir()
    for path in (file for file in source.iterdir() if file.suffix in (".en", ".de")):
        (part / path.name).write_text("\n".join(path.read_text().splitlines()[:12]) + "\n")
    words = ["--study", str(source / "study.toml"), "--pair", f"en-de={source}"]
    words += ["--pair", f"en2-de2={part}:en-de", "--out", str(out), "--updates", "3", "--rounds", "1"]
    run_command([*SCRIPT, *words, "--turn", "2"])
    record = read_record(out / "record.json")
    rows = record["rows"]
    directions = ["en-de", "de-en", "en2-de2", "de2-en2"]
    models = ["softmax", "cascade", "cascade, tokens of the language"]
    assert [(row["pair"], row["model"]) for row in rows] == [(d, m) for d in directions for m in models]
    assert all(row["update"] > 0 and row["speed"] > 0 for row in rows)
    assert all(row["p"] is None or 0 <= row["p"] <= 1 for row in rows)
    assert "de2: " in record["data"] and "drawn at temperature 2" in record["data"]
    searched = [line for line in record["commands"] if line.startswith("fairseq-generate")]
    assert len(searched) == 12 and sum("--mhe-allowed lang" in line for line in searched) == 4
    assert all(str(tmp_path) not in line for line in record["commands"])
    again = run_command([*SCRIPT, *words, "--turn", "2"])
    assert "train: done before, skipped" in again.stdout and "$ fairseq" not in again.stdout


@pytest.mark.slow
def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    for pair, said in (
        ("en", "--pair en is not two languages and a folder, such as en-de=DIR"),
        (f"en-de={tmp_path / 'none'}", "none is not a folder"),
    ):
        done = run_command([*SCRIPT, "--pair", pair, "--out", str(tmp_path / "out")], check=False)
        assert done.returncode == 1
        assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
