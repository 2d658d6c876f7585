"""The example config with fairseq-hydra-train: it trains, and stock commands read its checkpoint."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.helpers import REPO, run_command

CONFIGS = REPO / "examples" / "translation" / "config"

#: The example's model, small enough for a test.
SMALL = (
    [f"model.{side}_layers=1" for side in ("encoder", "decoder")]
    + [f"model.{side}_embed_dim=16" for side in ("encoder", "decoder")]
    + [f"model.{side}_ffn_embed_dim=16" for side in ("encoder", "decoder")]
    + [f"model.{side}_attention_heads=2" for side in ("encoder", "decoder")]
)


def hydra_train(
    folder: Path, data: Path, *overrides: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return run_command(
        ["fairseq-hydra-train", "--config-dir", str(CONFIGS), "--config-name", "mhe_transformer"]
        + [f"task.data={data}", "task.source_lang=src", "task.target_lang=tgt"]
        + [f"common.user_dir={REPO / 'mhe_fairseq'}", "common.cpu=true", "dataset.num_workers=0"]
        + [f"checkpoint.save_dir={folder / 'checkpoints'}", f"hydra.run.dir={folder / 'hydra'}"]
        + ["optimization.max_update=2", *SMALL, *overrides],
        check=check,
    )


@pytest.mark.slow
def test_trains_and_its_checkpoint_translates(toy_data: Path, tmp_path: Path) -> None:
    log = hydra_train(tmp_path, toy_data, "model.mhe_lengths=[8,12]").stdout
    log += (tmp_path / "hydra" / "hydra_train.log").read_text(encoding="utf-8")
    assert "num_updates 2" in log and "local_nll" in log

    checkpoint = tmp_path / "checkpoints" / "checkpoint_last.pt"
    model = torch.load(checkpoint, weights_only=True)["cfg"]["model"]
    assert model["mhe_lengths"] == "8,12" and model["mhe_head"] == "cascade"
    assert model["mhe_fingerprint"] and "mhe_options" not in model

    output = run_command(
        ["fairseq-generate", str(toy_data), "--user-dir", "mhe_fairseq", "--path", str(checkpoint)]
        + ["--beam", "2", "--max-len-b", "10", "--cpu", "--required-batch-size-multiple", "1"]
    ).stdout
    assert sum(line.startswith("H-") for line in output.splitlines()) == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "saved"),
    [
        (
            ["mhe_smoothing=per-level", "mhe_dropout=0.25"],
            {"mhe_smoothing": "per-level", "mhe_dropout": 0.25, "mhe_groups": None},
        ),
        (["mhe_head=product", "mhe_mixtures=2"], {"mhe_mixtures": 2, "mhe_group_rows": "tied"}),
        (["mhe_head=sampling", "mhe_sampling=shared"], {"mhe_sampling": "shared", "mhe_groups": 7}),
    ],
)
def test_flags_of_other_heads(
    flags: list[str], saved: dict[str, object], toy_data: Path, tmp_path: Path
) -> None:
    hydra_train(tmp_path, toy_data, *(f"model.{flag}" for flag in flags))
    checkpoint = tmp_path / "checkpoints" / "checkpoint_last.pt"
    model = torch.load(checkpoint, weights_only=True)["cfg"]["model"]
    assert {name: model[name] for name in saved} == saved


@pytest.mark.slow
def test_a_bad_flag_is_told_and_saves_nothing(toy_data: Path, tmp_path: Path) -> None:
    done = hydra_train(tmp_path, toy_data, "model.mhe_lengths=[8,8]", check=False)
    assert done.returncode != 0
    assert "lengths 8,8 give 64 slots for 88 tokens" in done.stderr
    assert not list((tmp_path / "checkpoints").glob("*.pt"))
