"""fairseq's mixture of experts, which calls the decoder itself and our criterion's ``compute_loss``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import ALL_SENTENCES, CRITERION, PAIR, hypotheses, logged
from tests.helpers import REPO, TOY_SIZES
from tests.masked_lm import CPU, run_lines

pytestmark = pytest.mark.slow

#: A user directory with both, as one is all that a command takes.
BOTH = f"""
import sys
sys.path.insert(0, {str(REPO)!r})
import mhe_fairseq
from fairseq.examples.translation_moe import translation_moe_src
"""

#: Flags of the task, and of the model.
METHODS = {
    "product": (["--method", "hMoEup"], ["--mhe-head", "product"]),
    "cascade": (
        ["--method", "sMoElp", "--mean-pool-gating-network"],
        ["--mhe-head", "cascade", "--share-all-embeddings"],
    ),
}


def test_experts_are_trained_and_asked(toy_data: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "both_plugins"
    plugin.mkdir()
    (plugin / "__init__.py").write_text(BOTH)
    task = ["--user-dir", str(plugin), *PAIR, "--task", "translation_moe", "--num-experts", "2", *CPU]
    lines = {
        name: [
            "train", str(toy_data), *task, *method, *model, *CRITERION, "--arch", "mhe_transformer_tiny",
            "--optimizer", "adam", "--lr", "0.005", "--max-tokens", "500", "--max-update", "12",
            "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints", *ALL_SENTENCES,
            "--save-dir", str(tmp_path / name),
        ]
        for name, (method, model) in METHODS.items()
    }  # fmt: skip
    for name, (method, _) in METHODS.items():
        lines[f"generate {name}"] = [
            "generate", str(toy_data), *task, *method, *ALL_SENTENCES,
            "--path", str(tmp_path / name / "checkpoint_last.pt"), "--gen-expert", "1", "--max-len-b", "9",
        ]  # fmt: skip
    found = run_lines(tmp_path / "logs", lines)
    for name in METHODS:
        assert found[name].status == 0, found[name].said[-4000:]
        losses = logged(found[name].said, "loss")
        assert len(losses) == 12 and losses[-1] < losses[0] - 0.3
        said = found[f"generate {name}"].said
        assert sorted(hypotheses(said)) == list(range(TOY_SIZES["test"])), said[-4000:]
