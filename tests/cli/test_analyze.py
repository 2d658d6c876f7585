"""`mhe analyze` of real checkpoints: every head, fairseq's own softmax, translation and language models."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from mhe_fairseq.cli.main import main
from mhe_fairseq.coding import Codebook, symbols_fingerprint
from tests.commands import CRITERION, PLUGIN, logged, train
from tests.helpers import run_command
from tests.language_model import CPU, LM, SMALL
from tests.masked_lm import COMMON, MASKED, pretrain, run_lines
from tests.pretend_cuda import pretend_cuda

pytestmark = pytest.mark.slow

SHORT = ["--max-update", "16", "--no-epoch-checkpoints"]
STOCK = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
#: Name -> architecture and flags.
MODELS: dict[str, tuple[str, list[str]]] = {
    "product": (
        "mhe_transformer_tiny",
        [*CRITERION, "--mhe-head", "product", "--mhe-mixtures", "2", "--task", "mhe_translation"],
    ),
    "cascade": ("mhe_transformer_tiny", [*CRITERION, "--mhe-head", "cascade", "--share-all-embeddings"]),
    "sampling": ("mhe_transformer_tiny", [*CRITERION, "--mhe-head", "sampling", "--mhe-groups", "3"]),
    "softmax": ("mhe_transformer_tiny", [*CRITERION, "--mhe-head", "softmax"]),
    "stock": ("transformer_tiny", [*STOCK, "--share-decoder-input-output-embed"]),
}


@pytest.fixture(scope="module")
def models(toy_data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each, the log of its training in ``log`` beside it."""
    folder = tmp_path_factory.mktemp("models")
    for name, (arch, flags) in MODELS.items():
        done = train(toy_data, folder / name, *flags, *SHORT, arch=arch, merged=True)
        (folder / name / "log").write_text(done.stdout)
    return {name: folder / name / "checkpoint_last.pt" for name in MODELS}


def analyze(*words: Any, folder: Path) -> dict[str, Any]:
    """The JSON that the command writes to ``folder``."""
    path = folder / "found.json"
    assert main(["analyze", *map(str, words), "--json", str(path)]) == 0
    found: dict[str, Any] = json.loads(path.read_text())
    path.unlink()
    return found


def validated(checkpoint: Path) -> float:
    """The last validation's loss, as fairseq logged it, in base 2."""
    return logged((checkpoint.parent / "log").read_text(), "valid_nll_loss", kind="valid")[-1]


def check(model: dict[str, Any]) -> None:
    """Tables of a model that agree with one another."""
    total = model["total"]
    assert total["bits"] == pytest.approx(total["loss"] / math.log(2))
    assert sum(row["loss"] for row in model["digits"]) == pytest.approx(total["loss"])
    for key, whole in (("share", 1), ("loss_share", 1), ("mass_share", 1), ("tokens", total["tokens"])):
        assert sum(row[key] for row in model["bands"]) == pytest.approx(whole, rel=1e-4), key
    lost = sum(sum(row["digit_loss"]) for row in model["bands"])
    assert lost == pytest.approx(total["loss"])
    right = sum((row["recall"] or 0) * row["share"] for row in model["bands"])
    assert right == pytest.approx(total["accuracy"])
    assert sum(each["size"] for each in model["calibration"]) == total["tokens"]
    bands = {row["band"]: row["tokens"] for row in model["bands"]}
    for row in model["copied"]:
        assert row["tokens"] + row["other_tokens"] == bands[row["band"]]


@pytest.mark.parametrize("name", MODELS)
def test_every_head_and_fairseqs_own_softmax(
    name: str, models: dict[str, Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = analyze(models[name], toy_data, "--max-tokens", "150", folder=tmp_path)
    (model,) = found["models"]
    check(model)
    assert model["total"]["bits"] == pytest.approx(validated(models[name]), abs=6e-4)
    head = "softmax" if name == "stock" else name
    assert found["heads"] == [head] and model["name"] == head and found["left_out"] == 0
    assert [row["band"] for row in model["bands"]] == ["EOS", "1-10", "11-100", "never seen"]
    # The two languages of the toy have one dictionary and no word in common.
    assert [row["band"] for row in model["copied"]] == ["1-10", "11-100", "never seen"]
    assert all(row["tokens"] == 0 for row in model["copied"])
    # A sentence has one end.
    assert model["bands"][0]["tokens"] == 30
    source = "planned lengths, dictionary order" if name == "stock" else f"the codebook of {models[name]}"
    assert found["codebook"]["source"] == source
    assert all(1 <= len(pair["examples"]) <= 3 for pair in model["confused"])
    printed = capsys.readouterr()
    assert "".join(found["conclusion"]).split(";")[0] in printed.out
    for title in ("All target tokens", "Digits: ", "rank in the training text", "Groups most confused"):
        assert title in printed.out
    assert "Warning" not in printed.err


@pytest.mark.parametrize("name", MODELS)
def test_nothing_of_a_pass_is_left_on_the_cpu(
    name: str, models: dict[str, Path], toy_data: Path, tmp_path: Path
) -> None:
    words = [models[name], toy_data, "--limit", "60", "--against", models["stock"]]
    expected = analyze(*words, folder=tmp_path)
    with pretend_cuda():
        assert analyze(*words, "--device", "cuda", folder=tmp_path) == expected


def test_as_a_process(models: dict[str, Path], toy_data: Path, tmp_path: Path) -> None:
    line = ["mhe_fairseq.cli.main", "analyze", str(models["cascade"]), str(toy_data), "--limit", "50"]
    done = run_command(["python", "-m", *line, "--png", str(tmp_path / "a.png")], env={"PYTHONWARNINGS": ""})
    assert "a sample of 50 target tokens" in done.stdout
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    # The bar alone is on stderr.
    assert len(done.stderr.strip().splitlines()) <= 2 and "DEBUG" not in done.stderr


def test_against_another_model(
    models: dict[str, Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    alone = analyze(models["cascade"], toy_data, "--top", "3", folder=tmp_path)
    words = [models["cascade"], toy_data, "--against", models["stock"], "--top", "3"]
    capsys.readouterr()
    png = tmp_path / "both.png"
    png.write_text("of before")
    found = analyze(*words, "--png", png, folder=tmp_path)
    printed = capsys.readouterr().out
    first, second = found["models"]
    for model in (first, second):
        check(model)
    assert first == alone["models"][0]
    assert second["total"]["bits"] == pytest.approx(validated(models["stock"]), abs=6e-4)
    assert [model["name"] for model in found["models"]] == ["cascade", "softmax"]
    # The second is told by the first one's groups.
    pairs = [[(pair["gold"], pair["predicted"]) for pair in model["confused"]] for model in (first, second)]
    assert pairs[0] == pairs[1] and len(pairs[0]) == 3
    gap = first["total"]["loss"] - second["total"]["loss"]
    assert f"The first model loses {abs(gap):.3f} nats a token {'more' if gap > 0 else 'less'}" in printed
    assert f" {gap:+.3f} " in printed and "difference" in printed
    assert png.read_bytes().startswith(b"\x89PNG")
    assert list(tmp_path.iterdir()) == [png]
    # A softmax without digits of its own is told by the other's.
    words = [models["stock"], toy_data, "--against", models["cascade"]]
    assert analyze(*words, folder=tmp_path)["codebook"] == found["codebook"]
    # Of the same kind, they are told apart by number.
    words = [models["stock"], toy_data, "--against", models["stock"]]
    again = analyze(*words, folder=tmp_path)
    assert [model["name"] for model in again["models"]] == ["first softmax", "second softmax"]
    assert again["conclusion"][1] == "Both models lose as much."


def test_a_codebook_a_split_and_a_sample(
    models: dict[str, Path], toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    symbols = Dictionary.load(str(toy_data / "dict.tgt.txt")).symbols
    slots = torch.randperm(5 * 5 * 5, generator=torch.Generator().manual_seed(1))[: len(symbols)]
    book = Codebook((5, 5, 5), slots, dictionary=symbols_fingerprint(symbols))
    book.save(tmp_path / "codes")
    words = ["--codebook", tmp_path / "codes", "--subset", "test", "--max-tokens", "100"]
    whole = analyze(models["stock"], toy_data, *words, folder=tmp_path)
    assert whole["subset"] == "test"
    assert [row["length"] for row in whole["models"][0]["digits"]] == [5, 5, 5]
    assert whole["codebook"]["fingerprint"] == book.fingerprint
    check(whole["models"][0])
    everything = whole["models"][0]["total"]["tokens"]
    sampled, again = (
        analyze(models["stock"], toy_data, *words, "--limit", "70", folder=tmp_path) for _ in range(2)
    )
    assert sampled == again and sampled["models"][0]["total"]["tokens"] == 70
    check(sampled["models"][0])
    beyond = analyze(models["stock"], toy_data, *words, "--limit", "100000", folder=tmp_path)
    assert beyond["models"][0]["total"]["tokens"] == everything
    loss = whole["models"][0]["total"]["loss"]
    assert beyond["models"][0]["total"]["loss"] == pytest.approx(loss, rel=1e-5)
    # The digits are another view of the same loss.
    plain = analyze(models["stock"], toy_data, "--subset", "test", folder=tmp_path)["models"][0]
    assert plain["total"]["loss"] == pytest.approx(loss, rel=1e-5) and len(plain["digits"]) == 2


def test_sentences_that_are_too_long(models: dict[str, Path], toy_data: Path, tmp_path: Path) -> None:
    state = torch.load(models["stock"], weights_only=True)
    state["cfg"]["task"]["max_source_positions"] = state["cfg"]["task"]["max_target_positions"] = 6
    path = tmp_path / "short.pt"
    torch.save(state, path)
    found = analyze(path, toy_data, folder=tmp_path)
    assert 0 < found["left_out"] < 30
    assert found["models"][0]["bands"][0]["tokens"] == 30 - found["left_out"]


def test_language_models(language_models: dict[str, Path], lm_data: Path, tmp_path: Path) -> None:
    stock = tmp_path / "stock"
    line = [
        "fairseq-train", str(lm_data), *PLUGIN, *LM, "--arch", "transformer_lm", *SMALL, "--optimizer",
        "adam", "--lr", "0.005", "--max-tokens", "500", "--required-batch-size-multiple", "1",
        "--log-format", "json", *CPU, *SHORT, "--save-dir", str(stock),
    ]  # fmt: skip
    said = run_command(line, merged=True).stdout
    last = stock / "checkpoint_last.pt"
    for name, path in language_models.items():
        found = analyze(path, lm_data, "--against", last, folder=tmp_path)
        assert [model["name"] for model in found["models"]] == [name, "softmax"]
        for model in found["models"]:
            check(model)
        log = (path.parent / "log").read_text()
        best = min(logged(log, "valid_nll_loss", kind="valid"))
        assert found["models"][0]["total"]["bits"] == pytest.approx(best, abs=6e-4)
        # cross_entropy logs as its loss what others log as their nll.
        losses = logged(said, "valid_loss", kind="valid")
        assert found["models"][1]["total"]["bits"] == pytest.approx(losses[-1], abs=6e-4)


def test_masked_language_models(lm_data: Path, tmp_path: Path) -> None:
    stock = ["train", str(lm_data), *PLUGIN, *MASKED, "--mask-prob", "0.3", "--arch", "roberta_base", *COMMON]
    stock += ["--criterion", "masked_lm", "--save-dir", str(tmp_path / "stock"), *SHORT]
    lines = {
        "cascade": pretrain(lm_data, tmp_path / "cascade", "--mhe-head", "cascade", *SHORT),
        "stock": stock,
    }
    done = run_lines(tmp_path, lines)
    assert [each.status for each in done.values()] == [0, 0], [each.last for each in done.values()]
    paths = {name: tmp_path / name / "checkpoint_last.pt" for name in lines}
    found = analyze(paths["cascade"], lm_data, "--against", paths["stock"], folder=tmp_path)
    assert [model["name"] for model in found["models"]] == ["cascade", "softmax"]
    for model, (name, key) in zip(
        found["models"], (("cascade", "valid_nll_loss"), ("stock", "valid_loss")), strict=True
    ):
        check(model)
        losses = logged(done[name].said, key, kind="valid")
        assert model["total"]["bits"] == pytest.approx(losses[-1], abs=6e-4)
