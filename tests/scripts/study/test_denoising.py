"""scripts/study/denoising.py, run for real: a tiny model, a piece of the bundled corpus."""

from __future__ import annotations

from pathlib import Path

import pytest

from scripts.study.report_records import read_record
from scripts.study.study_config import read_study
from tests.helpers import REPO, run_command
from tests.scripts.study.test_study import source as source  # the corpus

SCRIPT = ["python", str(REPO / "scripts" / "study" / "denoising.py")]

STUDY = """
baseline = "softmax"
languages = ["en", "de"]
vocab_size = 320
updates = 2
seeds = [1]
every = 2
train = '''--share-all-embeddings --encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16
  --decoder-embed-dim 16 --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16 --encoder-attention-heads 2
  --decoder-attention-heads 2 --max-tokens 400 --optimizer adam --lr 1e-3'''
generate = "--beam 1 --max-len-a 0 --max-len-b 5 --max-tokens 1000"
[variants.softmax]
train = "--arch bart_base --criterion label_smoothed_cross_entropy"
[variants.cascade]
train = "--arch mhe_transformer --criterion mhe_cross_entropy --mhe-head cascade --mhe-codebook {codes}"
assign = "--by cluster"
"""


@pytest.mark.slow
def test_a_record_from_text(source: Path, tmp_path: Path) -> None:
    study, out = tmp_path / "study.toml", tmp_path / "out"
    study.write_text(STUDY)
    # What it says of lines and pairs is seen in the prepared text: the corpus has 200.
    words = ["--study", str(study), "--text", f"{source}:en", "--source", str(source), "--out", str(out)]
    words += ["--lines", "150", "--pairs", "90", "--pretrain-updates", "3"]
    run_command([*SCRIPT, *words])
    record = read_record(out / "record.json")
    rows = record["rows"]
    assert [(row["model"], row["pretraining"]) for row in rows] == [
        ("softmax", 0), ("cascade", 0), ("softmax", 3), ("cascade", 3)
    ]  # fmt: skip
    assert all(4 < row["bits"] < 12 for row in rows)
    assert [row["denoising"] is None for row in rows] == [row["gain"] is None for row in rows]
    assert rows[0]["bits"] != rows[2]["bits"] and rows[1]["bits"] != rows[3]["bits"]
    assert all(0 <= float(row["p_gain"]) <= 1 for row in rows[2:])
    assert [row["p_model"] is None for row in rows] == [True, False, True, False]
    # The mask is of the dictionary: a transformer has as many rows in the fine-tuning.
    assert "<mask> 0\n" in (out / "data-bin" / "dict.de.txt").read_text()
    assert len((out / "prepared" / "mono" / "train.en").read_text().splitlines()) == 150
    assert len((out / "prepared" / "pair" / "train.de").read_text().splitlines()) == 90
    trained = [line for line in record["commands"] if line.startswith("fairseq-train")]
    assert len(trained) == 6 and sum("--finetune-from-model" in line for line in trained) == 2
    assert all(str(tmp_path / "out") not in line and str(source) not in line for line in record["commands"])
    again = run_command([*SCRIPT, *words])
    assert "train: done before, skipped" in again.stdout and "$ fairseq" not in again.stdout


def test_the_study_of_the_repository_is_one() -> None:
    study = read_study(REPO / "examples" / "pretraining" / "denoising.toml")
    assert list(study.variants) == ["softmax", "cascade", "sampling"]


def test_bad_input_is_one_sentence(source: Path, tmp_path: Path) -> None:
    for words, said in (
        (["--text", "folder"], "takes a folder and the ending of its files, DIR:ENDING; got folder"),
        (
            ["--text", f"{source}:en", "--pretrain-updates", "0"],
            "--pretrain-updates must be at least 1, got 0",
        ),
    ):
        line = [*SCRIPT, "--source", str(source), "--out", str(tmp_path / "out"), *words]
        done = run_command(line, check=False)
        assert done.returncode and said in done.stderr and "Traceback" not in done.stderr
