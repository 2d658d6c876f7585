"""scripts/recipes/average_checkpoints.py on checkpoints as fairseq-train writes them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.recipes.average_checkpoints import main


def checkpoint(folder: Path, name: str, seed: int, **more: torch.Tensor) -> dict[str, torch.Tensor]:
    """An older checkpoint of fairseq's, with args, which it reads as the newer."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(seed)
    model = {"half": torch.randn(3, 4).half(), "whole": torch.randn(5), "codes": torch.arange(7), **more}
    state: dict[str, Any] = {
        "args": argparse.Namespace(arch="transformer", task="translation", criterion="cross_entropy"),
        "model": model,
        "extra_state": {"train_iterator": {"epoch": 1}},
        "optimizer_history": [{"num_updates": seed, "lr_scheduler_state": {}}],
        "last_optimizer_state": {"momentum": torch.randn(100)},
    }
    torch.save(state, folder / name)
    return model


def average(folder: Path, count: int) -> int:
    return main([str(folder), "--last", str(count), "-o", str(folder / "averaged.pt")])


@pytest.mark.slow
def test_the_mean_of_the_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {
        n: checkpoint(tmp_path / "c", f"checkpoint_{1 + n // 100}_{n}.pt", n) for n in (90, 100, 20, 300)
    }
    checkpoint(tmp_path / "c", "checkpoint_best.pt", 7)
    assert average(tmp_path / "c", 3) == 0
    assert (
        "the mean of checkpoint_1_90.pt, checkpoint_2_100.pt, checkpoint_4_300.pt\n"
        in capsys.readouterr().out
    )
    found = torch.load(tmp_path / "c" / "averaged.pt", weights_only=True)
    for name in ("half", "whole"):
        mean = torch.stack([models[n][name].double() for n in (90, 100, 300)]).mean(0)
        assert found["model"][name].dtype == models[90][name].dtype
        torch.testing.assert_close(found["model"][name].double(), mean, atol=1e-3, rtol=1e-3)
    assert torch.equal(found["model"]["codes"], torch.arange(7))
    assert found["last_optimizer_state"] is None
    assert average(tmp_path / "c", 9) == 0
    assert "checkpoint_1_20.pt, " in (said := capsys.readouterr().out) and "(9 were asked for)" in said


@pytest.mark.slow
def test_checkpoints_of_two_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, more, said in (
        ("codes", {"codes": torch.arange(1, 8)}, "their codebooks differ in codes"),
        ("shapes", {"whole": torch.zeros(6)}, "differ in whole"),
        ("names", {"another": torch.zeros(6)}, "differ in half"),
    ):
        folder = tmp_path / name
        checkpoint(folder, "checkpoint_1_1.pt", 1)
        checkpoint(folder, "checkpoint_1_2.pt", 2, **more)
        assert average(folder, 2) == 1
        error = capsys.readouterr().err
        assert (
            error.startswith("average_checkpoints.py: error: ") and error.count("\n") == 1 and said in error
        )
        assert not (folder / "averaged.pt").exists()


def test_nothing_to_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert average(tmp_path, 2) == 1
    assert "has no checkpoint_EPOCH_UPDATES.pt to average" in capsys.readouterr().err
    assert average(tmp_path, 0) == 1
    assert "--last must be at least 1, got 0" in capsys.readouterr().err
    (tmp_path / "checkpoint_1_1.pt").write_bytes(b"PK cut short")
    assert average(tmp_path, 1) == 1
    assert "checkpoint_1_1.pt" in capsys.readouterr().err and not (tmp_path / "averaged.pt").exists()
