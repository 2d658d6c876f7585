"""The recipes of examples/pretraining that fine-tune on a pair, run for real at --scale tiny."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.examples.mirror import bundled
from tests.examples.recipes import refused
from tests.examples.test_pretraining import commands, run_recipe

SIZES = {"train": 150, "valid": 20, "test": 20}
FINETUNE = "--max-update 3 --total-num-update 3 --max-tokens 1000 --lr 1e-3"
QUICK = {"FINETUNE_FLAGS": FINETUNE}
FEW = ["--vocab", "300", "--updates", "4"]


def write_pair(folder: Path, src: str, tgt: str) -> Path:
    """Pairs of the bundled corpus under other names of its languages."""
    folder.mkdir()
    for split, size in SIZES.items():
        pairs = bundled(split, 0, size)
        for side, name in enumerate((src, tgt)):
            (folder / f"{split}.{name}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    return folder


@pytest.mark.slow
def test_mbart(tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "pair", "en", "de")
    out = tmp_path / "out"
    done = run_recipe("mbart", out, "--pair", str(pair), *FEW, "--head", "product", env=QUICK)
    assert re.search(r"^mbart, product: test set of 20 sentences: BLEU \d", done.stdout, re.MULTILINE)
    ran = [line.split()[0] for line in commands(done.stdout)]
    assert ran == [
        *("python", "fairseq-preprocess", "fairseq-preprocess", "cp", "mv", "fairseq-preprocess", "mv"),
        *("mhe", "fairseq-train", "fairseq-train", "fairseq-generate", "mv", "python"),
    ]
    assert len((out / "hypotheses.de").read_text().splitlines()) == 20
    again = run_recipe("mbart", out, "--pair", str(pair), *FEW, "--head", "product", env=QUICK)
    for step in ("prepare", "preprocess-mono", "preprocess-pair", "assign", "train", "finetune", "translate"):
        assert f"{step}: done before, skipped" in again.stdout
    assert again.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_summaries_with_text_of_its_own(tmp_path: Path) -> None:
    pair = write_pair(tmp_path / "pair", "source", "target")
    mono = tmp_path / "mono"
    mono.mkdir()
    for split in ("train", "valid"):
        text = (pair / f"{split}.source").read_text()
        (mono / f"{split}.source").write_text(text.replace("\n", "\n\n", 5))
    done = run_recipe(
        "bart_xsum", tmp_path / "out", "--pair", str(pair), "--mono", str(mono), *FEW, env=QUICK
    )
    assert re.search(r"^bart_xsum, cascade: test set of 20 sentences: BLEU \d", done.stdout, re.MULTILINE)
    train = next(line for line in commands(done.stdout) if line.startswith("fairseq-train"))
    assert "mono-bin/source --user-dir" in train and "--task denoising" in train


@pytest.mark.parametrize(
    ("recipe", "more", "said"),
    [
        ("mbart", [], "--pair DIR is needed, with {train,valid,test}.{en,de}"),
        ("bart_xsum", ["--pair", "nowhere"], "there is no folder"),
        ("bart_xsum", ["--text", "README.md"], "there is no argument '--text'"),
        ("mbart", ["--pair", "docs", "--mono", "nowhere"], "there is no folder"),
        ("gpt2_bpe", ["--pair", "docs"], "is for the recipes mbart and bart_xsum"),
    ],
)
def test_bad_arguments(recipe: str, more: list[str], said: str, tmp_path: Path) -> None:
    refused(run_recipe(recipe, tmp_path / "out", *more, check=False), said)
    assert not (tmp_path / "out").exists()


def test_bad_text(tmp_path: Path) -> None:
    (tmp_path / "pair").mkdir()
    done = run_recipe("mbart", tmp_path / "out", "--pair", str(tmp_path / "pair"), check=False)
    refused(done, "there is no train.en or train.en.xz in", script="prepare_denoising.py")
