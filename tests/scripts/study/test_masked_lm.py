"""scripts/study/masked_lm.py, run for real: tiny models, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus

SCRIPT = ["python", str(REPO / "scripts" / "study" / "masked_lm.py")]
TINY = (
    "--encoder-layers 1 --encoder-embed-dim 16 --encoder-ffn-embed-dim 16 --encoder-attention-heads 2 "
    "--batch-size 4"
)


@pytest.fixture
def labelled(source: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "labelled"
    folder.mkdir()
    for split in ("train", "valid", "test"):
        lines = (source / f"{split}.en").read_text().splitlines()[:40]
        made = [f"{'long' if len(line) > 20 else 'short'}\t{line}\n" for line in lines]
        (folder / f"{split}.tsv").write_text("".join(made))
    return folder


@pytest.mark.slow
def test_a_record_from_text(source: Path, labelled: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--text", f"{source}:en", "--labelled", str(labelled), "--out", str(out), "--pieces", "320"]
    words += ["--heads", "softmax,sampling,cascade-bias", "--examples", "30", "--seeds", "1,2"]
    words += ["--pretrain-updates", "3", "--updates", "4", "--train-flags", TINY]
    run_command([*SCRIPT, *words])
    record = read_record(out / "record.json")
    rows = record["rows"]
    assert [row["pretraining"] for row in rows] == ["none", "softmax", "sampling", "cascade-bias"]
    assert [row["bits"] is None for row in rows] == [True, False, False, False]
    assert all(4 < row["bits"] < 12 for row in rows[1:])
    assert all(0 <= row["test"][0] <= 100 and len(row["each"].split(", ")) == 2 for row in rows)
    for row in rows[1:]:
        assert row["gain"] == pytest.approx(row["test"][0] - rows[0]["test"][0])
    assert [row["against"] is None for row in rows] == [True, True, False, False]
    assert rows[2]["against"] == pytest.approx(rows[2]["test"][0] - rows[1]["test"][0])
    assert len((out / "chosen" / "train.tsv").read_text().splitlines()) == 30
    assert (out / "chosen" / "test.tsv").read_text() == (labelled / "test.tsv").read_text()
    trained = [line for line in record["commands"] if line.startswith("fairseq-train")]
    assert len(trained) == 3 + 4 * 2 and sum("--finetune-from-model" in line for line in trained) == 6
    assert sum("--mhe-bias" in line for line in trained) == 1
    assert all(str(out) not in line and str(source) not in line for line in record["commands"])
    again = run_command([*SCRIPT, *words])
    assert "train: done before, skipped" in again.stdout and "$ fairseq" not in again.stdout


def test_bad_input_is_one_sentence(source: Path, labelled: Path, tmp_path: Path) -> None:
    known = "cascade,cascade-bias,sampling,sampling-sampled,sampling-bias,sampling-shared"
    for words, said in (
        (["--heads", "cascade"], f"--heads takes softmax and then different ones of {known}; got cascade"),
        (
            ["--heads", "softmax,x"],
            f"--heads takes softmax and then different ones of {known}; got softmax,x",
        ),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--text", f"{source}:fr"], f"there is no train.fr or train.fr.xz in {source}"),
        (["--pieces", "320", "--examples", "50"], "--examples 50 are more than the 40 sentences"),
    ):
        line = [*SCRIPT, "--text", f"{source}:en", "--labelled", str(labelled)]
        done = run_command([*line, "--out", str(tmp_path / "out"), *words], check=False)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
