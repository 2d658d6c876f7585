"""scripts/study/study.py and study_times.py, run for real: tiny models, a piece of the bundled corpus."""

from __future__ import annotations

import json
import lzma
import shutil
import subprocess
from pathlib import Path

import pytest

from scripts.study.study import parse_seeds
from scripts.study.study_config import StudyError
from tests.helpers import REPO, run_command

STUDY = """
baseline = "softmax"
languages = ["en", "de"]
vocab_size = 300
updates = 4
seeds = [1]
every = 2
train = '''--encoder-layers 1 --decoder-layers 1 --encoder-embed-dim 16 --decoder-embed-dim 16
  --encoder-ffn-embed-dim 16 --decoder-ffn-embed-dim 16
  --encoder-attention-heads 2 --decoder-attention-heads 2
  --max-tokens 400 --optimizer adam --lr 1e-3 --share-all-embeddings'''
generate = "--beam 2 --max-len-a 0 --max-len-b 5 --max-tokens 1000"
[variants.cascade]
train = '''--task mhe_translation --arch mhe_transformer --criterion mhe_cross_entropy
  --mhe-head cascade --mhe-codebook {codes}'''
assign = "--by cluster"
[variants.softmax]
train = "--task translation --arch transformer --criterion label_smoothed_cross_entropy"
"""


def script(name: str, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_command(["python", str(REPO / "scripts" / "study" / name), *words], check=check)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    for split, count in (("train", 200), ("valid", 20), ("test", 30)):
        for lang in ("en", "de"):
            with lzma.open(REPO / "examples" / "translation" / "data" / f"{split}.{lang}.xz", "rt") as file:
                lines = [next(file) for _ in range(count)]
            (folder / f"{split}.{lang}").write_text("".join(lines))
    (folder / "study.toml").write_text(STUDY)
    return folder


@pytest.mark.slow
def test_a_study_from_text_to_times(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = [
        "--study",
        str(source / "study.toml"),
        "--source",
        str(source),
        "--out",
        str(out),
        "--threads",
        "1",
        "--seeds",
        "1,2",
    ]
    printed = script("study.py", *words).stdout
    assert "4 runs in" in printed
    runs = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [(run["variant"], run["seed"]) for run in runs] == [
        ("softmax", 1), ("cascade", 1), ("softmax", 2), ("cascade", 2)
    ]  # fmt: skip
    for run in runs:
        assert [update for update, _ in run["validation"]] == [2, 4]
        assert 5 < run["validation"][-1][1] < 12, "bits a token of 300 pieces, hardly trained"
        assert run["test"]["signatures"]["BLEU"].startswith("nrefs:1")
        assert f"--seed {run['seed']}" in run["commands"][0]
        assert run["commands"][1].startswith("fairseq-generate")
        assert run["versions"]["torch"] and "cores for a training" in run["machine"]
        is_base = run["variant"] == "softmax"
        assert [update for update, _ in run["earlier"]] == ([2] if is_base and run["seed"] == 1 else [])
        assert (run["against"] is None) == is_base
        if not is_base:
            assert set(run["against"]) == {"BLEU", "chrF2"}
    assert runs[0]["validation"] != runs[2]["validation"], "two seeds, one model?"

    # Again: nothing is trained, and the record is the same.
    before = (out / "runs.jsonl").read_bytes()
    again = script("study.py", *words).stdout
    assert "train: done before, skipped" in again and "$ fairseq-train" not in again
    assert (out / "runs.jsonl").read_bytes() == before

    # More updates train on; the scores are of the longer training.
    words = [*words[:-2], "--seeds", "1", "--only", "cascade", "--updates", "6"]
    script("study.py", *words)
    lines = [json.loads(line) for line in (out / "runs.jsonl").read_text().splitlines()]
    assert [run for run in lines if run["updates"] == 4] == [runs[0], runs[2], runs[3]], "others are kept"
    (longer,) = [run for run in lines if run["updates"] == 6]
    assert (longer["variant"], longer["seed"]) == ("cascade", 1)
    assert [update for update, _ in longer["validation"]] == [2, 4, 6] and longer["updates"] == 6

    words = [
        "--study",
        str(source / "study.toml"),
        "--out",
        str(out),
        "--rounds",
        "1",
        "--search-rounds",
        "1",
        "--threads",
        "1",
    ]
    printed = script("study_times.py", *words).stdout
    times = [json.loads(line) for line in (out / "times.jsonl").read_text().splitlines()]
    assert [each["variant"] for each in times] == ["softmax", "cascade"]
    for each in times:
        assert each["sentences"] == 30 and len(each["update_seconds"]) == 5
        assert f"{each['variant']}: update" in printed
    assert times[1]["output_parameters"] > 0 == times[0]["output_parameters"], "tied, but for the groups"


def test_seeds() -> None:
    assert parse_seeds("3,1") == (3, 1)
    for bad in ("", "1,1", "a", "1.5"):
        with pytest.raises(StudyError, match="--seeds takes different whole numbers"):
            parse_seeds(bad)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "product"], "--only takes different ones of softmax, cascade; got product"),
        (["--only", "softmax,softmax"], "--only takes different ones of softmax, cascade"),
        (["--seeds", "x"], "--seeds takes different whole numbers"),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
        (["--study", "none.toml"], "there is no study"),
    ],
)
def test_bad_flags_are_one_sentence(source: Path, tmp_path: Path, words: list[str], said: str) -> None:
    flags = ["--study", str(source / "study.toml"), "--source", str(source), "--out", str(tmp_path / "out")]
    done = script("study.py", *flags, *words, check=False)
    assert done.returncode == 1 and done.stderr.startswith("study.py: error: ") and said in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_missing_source_leaves_nothing_trained(source: Path, tmp_path: Path) -> None:
    flags = ["--study", str(source / "study.toml"), "--source", str(tmp_path / "none")]
    done = script("study.py", *flags, "--out", str(tmp_path / "out"), check=False)
    assert done.returncode == 1 and "the command failed with status 1" in done.stderr
    assert not list((tmp_path / "out").glob("*-1"))


def test_times_of_a_model_that_was_not_trained(source: Path, tmp_path: Path) -> None:
    flags = ["--study", str(source / "study.toml"), "--out", str(tmp_path)]
    done = script("study_times.py", *flags, check=False)
    assert done.returncode == 1 and f"{tmp_path} has no checkpoint of seed 1" in done.stderr
    done = script("study_times.py", *flags, "--only", "cascade", check=False)
    assert done.returncode == 1 and "cascade-1/checkpoints/checkpoint_last.pt" in done.stderr
    shutil.rmtree(tmp_path)
