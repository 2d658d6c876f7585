"""Models of fairseq's own, without a head of ours, trained on the toy corpus as a user would."""

from __future__ import annotations

from pathlib import Path

from tests.commands import ALL_SENTENCES, PAIR, PLUGIN
from tests.language_model import LM
from tests.language_model import SMALL as SMALL_DECODER
from tests.masked_lm import MASKED, run_lines
from tests.masked_lm import SMALL as SMALL_ENCODER

#: With the plugin imported for what it mends in fairseq on numpy 2.
_COMMON = [
    "--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *ALL_SENTENCES,
    "--cpu", "--num-workers", "0", "--seed", "1", "--no-epoch-checkpoints", "--max-update", "40",
]  # fmt: skip


def train_stock(toy_data: Path, lm_data: Path, folder: Path) -> dict[str, Path]:
    """Checkpoints by the name of a model: transformer (tied), transformer_lm (not tied) and roberta (tied,
    and with a bias). With the plugin, whose repairs some of fairseq's tasks need."""
    smoothed = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    lines = {
        "transformer": [
            str(toy_data), *PAIR, "--arch", "transformer_tiny", "--share-all-embeddings", *smoothed
        ],
        "transformer_lm": [
            str(lm_data), *LM, "--arch", "transformer_lm", *SMALL_DECODER, "--criterion", "cross_entropy"
        ],
        "roberta": [
            str(lm_data), *MASKED, "--mask-prob", "0.3", "--arch", "roberta_base", *SMALL_ENCODER,
            "--criterion", "masked_lm",
        ],
    }  # fmt: skip
    saved = {name: folder / name for name in lines}
    runs = {
        name: ["train", *line, *PLUGIN, *_COMMON, "--save-dir", str(saved[name])]
        for name, line in lines.items()
    }
    for name, ended in run_lines(folder, runs).items():
        assert ended.status == 0, f"{name}: {ended.said[-2000:]}"
    return {name: path / "checkpoint_last.pt" for name, path in saved.items()}
