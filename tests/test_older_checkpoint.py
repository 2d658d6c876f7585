"""A checkpoint written before modules were moved loads, searches and trains on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.commands import generate, hypotheses, logged, train
from tests.helpers import REPO

OLD = REPO / "tests" / "data" / "before_the_move"


@pytest.mark.slow
def test_it_translates_as_it_did(toy_data: Path) -> None:
    checkpoint = OLD / "checkpoint_last.pt"
    found = hypotheses(generate(toy_data, checkpoint, "--task", "mhe_translation").stdout)
    expected = json.loads((OLD / "hypotheses.json").read_text(encoding="utf-8"))
    assert {str(number): text for number, (_, text) in found.items()} == {
        number: text for number, (_, text) in expected.items()
    }
    for number, (score, _) in found.items():
        assert score == pytest.approx(expected[str(number)][0], abs=2e-3)


@pytest.mark.slow
def test_it_trains_on(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--restore-file", str(OLD / "checkpoint_last.pt"), "--task", "mhe_translation"]
    sizes = [f"--{side}-{name}" for side in ("encoder", "decoder") for name in ("embed-dim", "ffn-embed-dim")]
    widths = [word for flag in sizes for word in (flag, "16" if "ffn" in flag else "8")]
    layers = ["--encoder-layers", "1", "--decoder-layers", "1"]
    out = train(
        toy_data, tmp_path, *flags, "--mhe-head", "cascade", "--mhe-lengths", "8,11", *widths, *layers,
        "--criterion", "mhe_cross_entropy", "--label-smoothing", "0.1", "--max-epoch", "4",
    ).stdout  # fmt: skip
    # Epochs one to three are in the checkpoint.
    assert set(logged(out, "epoch")) == {4}
    assert (tmp_path / "checkpoint_last.pt").is_file()
