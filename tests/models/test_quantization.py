"""fairseq's quantisation-aware training and our models: what works, and what is refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.commands import CRITERION, PAIR, PLUGIN, hypotheses, logged, train_line
from tests.language_model import LM
from tests.language_model import SMALL as SMALL_LM
from tests.masked_lm import CPU, Ended, pretrain, run_lines

pytestmark = pytest.mark.slow

SHORT = ["--max-update", "20", "--no-epoch-checkpoints", "--disable-validation"]
NOISE = ["--quant-noise-pq", "0.05", "--quant-noise-pq-block-size"]
HEADS = {
    "cascade": ["--share-all-embeddings"],
    "product": ["--mhe-head", "product"],
}
#: Centroids for the layers that a list of regular expressions names.
CENTROIDS = """
n_centroids:
  Linear: {key: in_features, value: {"*": 8}}
  Embedding: {key: embedding_dim, value: {"*": 8}}
block_sizes:
  Linear: {key: fuzzy_name, value: {fc: 8, attn: 4, emb: 4, "*": 4}}
  Embedding: {key: fuzzy_name, value: {"*": 8}}
"""
BODY = r"decoder\\.layers\\.\\d+\\.fc[12]"


def config(folder: Path, *layers: str) -> list[str]:
    path = folder / "quantize.yaml"
    path.write_text(CENTROIDS + "layers_to_quantize:\n" + "".join(f'  - "{layer}"\n' for layer in layers))
    return ["--quantization-config-path", str(path)]


def translation(data: Path, save_dir: Path, *flags: str) -> list[str]:
    return ["train", *train_line(data, save_dir, *CRITERION, *SHORT, *flags)[1:]]


def language_model(data: Path, save_dir: Path, *flags: str) -> list[str]:
    return [
        "train", str(data), *PLUGIN, *LM, "--arch", "mhe_transformer_lm", *SMALL_LM, *CRITERION, *CPU,
        "--optimizer", "adam", "--lr", "0.005", "--max-tokens", "500", "--save-dir", str(save_dir),
        "--log-format", "json", "--log-interval", "1", *SHORT, *flags,
    ]  # fmt: skip


def losses(ended: Ended) -> list[float]:
    assert ended.status == 0, ended.said[-3000:]
    found = logged(ended.said, "loss")
    assert len(found) == 20 and found[-1] < found[0] - 0.5
    return found


def test_noise_on_the_layers(toy_data: Path, lm_data: Path, tmp_path: Path) -> None:
    lines = {
        name: translation(toy_data, tmp_path / name, *flags, *NOISE, "8") for name, flags in HEADS.items()
    }
    lines["none"] = translation(toy_data, tmp_path / "none", *HEADS["cascade"])
    lines["lm"] = language_model(lm_data, tmp_path / "lm", *NOISE, "8")
    lines["masked"] = pretrain(lm_data, tmp_path / "masked", *SHORT[:2], *NOISE, "8")
    ended = run_lines(tmp_path / "logs", lines)
    found = {name: losses(each) for name, each in ended.items()}
    assert found["cascade"] != found["none"]
    long = ["--max-len-a", "1.5", "--max-len-b", "5", "--beam", "2", "--required-batch-size-multiple", "1"]
    lines = {
        name: [
            "generate", str(toy_data), *PLUGIN, *PAIR, "--path", str(tmp_path / name / "checkpoint_last.pt"),
            *CPU, *long,
        ]
        for name in HEADS
    }  # fmt: skip
    for each in run_lines(tmp_path / "logs", lines).values():
        assert len(hypotheses(each.said)) == 30, each.said[-3000:]


def test_centroids_for_the_layers(toy_data: Path, tmp_path: Path) -> None:
    """The head stays as it is."""
    ended = run_lines(
        tmp_path / "logs",
        {"a": translation(toy_data, tmp_path / "a", *HEADS["cascade"], *config(tmp_path, BODY))},
    )["a"]
    losses(ended)
    weights = torch.load(tmp_path / "a" / "checkpoint_last.pt", weights_only=True)["model"]
    assert weights["decoder.layers.0.fc1.centroids"].shape == (8, 8)
    assert "decoder.head.group.weight" in weights and "encoder.embed_tokens.weight" in weights


def test_refused(toy_data: Path, lm_data: Path, tmp_path: Path) -> None:
    scalar = ["--quant-noise-scalar", "0.1"]
    rows = "and the rows of an mhe head and of its embeddings cannot be replaced by centroids; name layers"
    said = {
        "scalar": "--quant-noise-scalar 0.1 replaces every layer of a model, and the rows of an mhe head and",
        "lm": "--quant-noise-scalar 0.1 replaces every layer of a model, and the rows of an mhe head and",
        "masked": "--quant-noise-scalar 0.1 replaces every layer of a model, and the rows of an mhe head and",
        "embedding": r"--quantization-config-path: layers_to_quantize '.*embed_tokens' takes in "
        f"encoder.embed_tokens, encoder.embed_tokens.map, {rows}",
        "head": "layers_to_quantize 'decoder\\.head' takes in decoder.head.group, decoder.head.local.table, "
        + rows,
        "block": "--quant-noise-pq-block-size 7 must divide the widths of the layers, which are 64",
    }
    for name in ("embedding", "head"):
        (tmp_path / name).mkdir()
    lines = {
        "scalar": translation(toy_data, tmp_path / "out", *scalar),
        "lm": language_model(lm_data, tmp_path / "out", *scalar),
        "masked": pretrain(lm_data, tmp_path / "out", *SHORT[:2], *scalar),
        "embedding": translation(
            toy_data, tmp_path / "out", *HEADS["cascade"], *config(tmp_path / "embedding", r".*embed_tokens")
        ),
        "head": translation(toy_data, tmp_path / "out", *config(tmp_path / "head", r"decoder\\.head")),
        "block": translation(toy_data, tmp_path / "out", *NOISE, "7"),
    }
    for name, ended in run_lines(tmp_path / "logs", lines).items():
        assert ended.status == 1 and "Traceback" not in ended.said, ended.said[-3000:]
        assert ended.last.startswith("mhe_fairseq: error: ") and said[name] in ended.last, ended.last
    assert not list(tmp_path.glob("out/*.pt"))
