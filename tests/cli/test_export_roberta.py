"""What `mhe export` says of masked language models."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.main import main
from tests.models.test_export import checkpoint as translation
from tests.models.test_export_roberta import checkpoint
from tests.models.test_roberta import HEADS, build


@pytest.mark.parametrize(
    ("name", "flags", "layer"),
    [
        ("softmax", [], "once a softmax head: V x d = 50 x 16, float32, tied to the embeddings"),
        ("sampling batch", [], "once a sampling head: V x d = 50 x 16, float32, not tied"),
        (
            "cascade",
            ["--body"],
            "in place of a cascade head: V x d = 50 x 16, float32, tied to the embeddings and not trained: "
            "to train on, not to predict tokens",
        ),
    ],
)
def test_the_report(
    name: str, flags: list[str], layer: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = checkpoint(build(**HEADS[name]), {"_name": "mhe_masked_lm"})
    torch.save(state, tmp_path / "ours.pt")
    output = tmp_path / "stock.pt"
    assert main(["export", str(tmp_path / "ours.pt"), "-o", str(output), *flags]) == 0
    assert capsys.readouterr().out == (
        f"{output}: fairseq's own --arch roberta_base, {output.stat().st_size:,} bytes; it needs no "
        "--user-dir\n"
        f"  output layer, {layer}\n"
        "  fairseq-train LABELLED-DATA --task sentence_prediction --criterion sentence_prediction --arch "
        f"roberta_base --max-positions 12 --restore-file {output} --reset-optimizer --reset-dataloader "
        "--reset-meters ...\n"
    )
    assert torch.load(output, weights_only=True)["model"]["encoder.lm_head.weight"].shape == (50, 16)


@pytest.mark.parametrize(
    ("name", "flags", "sentence"),
    [
        (
            "cascade",
            [],
            "has a cascade head, and no softmax of V x d equals it; heads that can be exported are softmax "
            "and sampling; --body exports what is under the head, with an output layer that is not trained",
        ),
        (
            "translation",
            ["--body"],
            "has a product head, and no softmax of V x d equals it; heads that can be exported are softmax "
            "and sampling; --body is for models that are fine-tuned to classify, or whose head is tied to "
            "the embeddings",
        ),
    ],
)
def test_what_cannot_be_exported(
    name: str, flags: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = translation("product")
    if name != "translation":
        state = checkpoint(build(**HEADS[name]), {"_name": "mhe_masked_lm"})
    path, output = tmp_path / "ours.pt", tmp_path / "stock.pt"
    torch.save(state, path)
    assert main(["export", str(path), "-o", str(output), *flags]) == 1
    assert capsys.readouterr().err == f"mhe: checkpoint {path} {sentence}\n"
    assert not output.exists()
