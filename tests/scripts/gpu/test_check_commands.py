"""The parts of scripts/gpu/check.py that run fairseq's commands, run for real on the CPU with tiny sizes."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mhe_fairseq.bench.decode import ENTROPY
from scripts.gpu.check import PARTS
from scripts.gpu.train_flags import LAYERS
from tests.commands import CRITERION, train
from tests.helpers import REPO, run_command

SCRIPT = str(REPO / "scripts" / "gpu" / "check.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """What parts d to g found, and printed."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("needs triton")
    folder = tmp_path_factory.mktemp("check")
    path = folder / "found.json"
    done = run_command(
        [sys.executable, SCRIPT, "--smoke", "--parts", "d,e,f,g", "--json", str(path)],
        env={"TMPDIR": str(folder)},
    )
    # What was made is gone.
    assert not list(folder.glob("gpu-check-*"))
    found: dict[str, Any] = json.loads(path.read_text())
    return found["parts"], done.stdout


def by_name(part: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in part["checks"]}


def test_all_parts_end_well(whole: tuple[dict[str, Any], str]) -> None:
    parts, said = whole
    assert list(PARTS) == ["a", "b", "c", "d", "e", "f", "g"] and list(parts) == ["d", "e", "f", "g"]
    for part in parts.values():
        assert part["checks"] and not part["failed"] and not part["not_reached"]
    for title in ("fairseq-train, V = 120", "Beam search", "One rank", "Kernels against plain torch"):
        assert f"**{title}" in said


def test_trainings(whole: tuple[dict[str, Any], str]) -> None:
    runs = by_name(whole[0]["d"])
    for layer in LAYERS:
        run = runs[f"{layer}, V = 120, fp32, cuDNN attention off"]
        assert run["words_per_second"] > 0 and len(run["losses"]) == 2
        assert any("runs in kernels" in line for line in run["said"]) == ("stock" not in layer)
    # The switch changes nothing here, and the stock training is what it was.
    stock = [runs[f"stock, V = 120, fp32, cuDNN attention {way}"] for way in ("off", "on")]
    assert stock[0]["losses"] == stock[1]["losses"]


def test_searches(whole: tuple[dict[str, Any], str]) -> None:
    checks = by_name(whole[0]["e"])
    for head in ("cascade", "cascade-tied", "product", "mixture"):
        exact = checks[f"{head}, V = 120"]["differences"]["fp32"]
        assert exact["differ"] == 0 and exact["hypotheses"] == 4
    generated = checks["fairseq-generate, V = 120"]
    assert generated["differences"]["sentences"] == 5 and generated["differences"]["best_differ"] == 0
    assert [name for name, said in generated["said"].items() if "compact search" in said] == ["compact"]
    # 4 words and EOS each.
    assert set(generated["tokens"].values()) == {25}


def test_one_rank(whole: tuple[dict[str, Any], str]) -> None:
    part = whole[0]["f"]
    seen = {(check["head"], check["backend"]): check for check in part["checks"]}
    assert {backend for _, backend in seen} >= {"pytorch_ddp", "legacy_ddp"}
    assert all(check["group"] == "gloo" and len(check["losses"]) == 2 for check in seen.values())
    assert len(part["not_here"]) == 1 and "fully_sharded" in part["not_here"][0]


def test_language_models(whole: tuple[dict[str, Any], str]) -> None:
    checks = by_name(whole[0]["g"])
    assert list(checks) == ["masked language model, fp32", "language model, fp32"]
    for check in checks.values():
        assert len(check["kernels"]["losses"]) == 2 and all(map(math.isfinite, check["kernels"]["norms"]))


def test_without_fairseq(tmp_path: Path) -> None:
    """One line a part, no failure."""
    (tmp_path / "fairseq.py").write_text("raise ModuleNotFoundError('none', name='fairseq')")
    paths = os.pathsep.join([str(tmp_path), str(REPO)])
    path = tmp_path / "found.json"
    done = run_command(
        [sys.executable, SCRIPT, "--smoke", "--parts", "d,e,f,g", "--json", str(path)],
        env={"PYTHONPATH": paths},
    )
    assert (
        done.stdout.count("- not available: fairseq is not installed: pip install ve-fairseq==0.12.3 for ")
        == 4
    )
    parts = json.loads(path.read_text())["parts"]
    assert all(len(p["not_here"]) == 1 and not p["checks"] and not p["not_reached"] for p in parts.values())


def test_a_checkpoint_is_as_sure_as_it_is_made(toy_data: Path, tmp_path: Path) -> None:
    from fairseq import checkpoint_utils

    from scripts.gpu.sharpened import _features, sharpen_checkpoint

    flags = [*CRITERION, "--max-update", "1", "--no-epoch-checkpoints"]
    for name, more in (("own", []), ("tied", ["--share-all-embeddings"])):
        train(toy_data, tmp_path / name, *flags, "--mhe-head", "cascade", *more)

    def entropy(path: str) -> float:
        (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([path])
        with torch.no_grad():
            log_probs = model.eval().decoder.head.log_probs(_features(model, task))
        return float(-(log_probs.exp() * log_probs).sum(dim=-1).mean())

    own = str(tmp_path / "own" / "checkpoint_last.pt")
    assert entropy(own) > ENTROPY + 0.1
    sharpen_checkpoint(own)
    assert entropy(own) == pytest.approx(ENTROPY, abs=0.05)
    with pytest.raises(ValueError, match="tied to the embeddings"):
        sharpen_checkpoint(str(tmp_path / "tied" / "checkpoint_last.pt"))
