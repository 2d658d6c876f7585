"""`mhe export`, and fairseq's own commands on what it writes."""

from __future__ import annotations

import argparse
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.main import main
from tests.commands import ALL_SENTENCES, CRITERION, LAYERS, PAIR, PLUGIN, generate, logged, train
from tests.damaged import DAMAGED, write_damaged
from tests.helpers import run_command
from tests.models.test_export import checkpoint
from tests.test_bad_input import Exploit
from tests.test_hydra import hydra_train

MODELS: dict[str, list[str]] = {
    "tied": ["--mhe-head", "sampling", "--mhe-groups", "3", "--share-all-embeddings", "--mhe-tie", "exact"],
    "untied": ["--mhe-head", "sampling", "--mhe-groups", "3"],
}
LIMITS = ["--max-len-a", "1.5", "--max-len-b", "5"]


def stock_command(name: str, data: Path, folder: Path, *flags: str) -> str:
    """What a command of fairseq says to whom the plugin is nowhere to be found."""
    line = [name, str(data), *PAIR, "--cpu", *ALL_SENTENCES, *flags]
    done = run_command(line, cwd=folder, env={"PYTHONPATH": ""})
    return done.stdout + done.stderr


def scores(output: str) -> list[str]:
    """The translations with their scores, and the scores of their tokens."""
    return [line for line in output.splitlines() if line.startswith(("H-", "P-"))]


def export(source: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Export to ``folder``; the command says nothing on stderr."""
    output = folder / "stock.pt"
    assert main(["export", str(source), "-o", str(output)]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith(f"{output}: fairseq's own --arch transformer_tiny, ")
    assert sorted(path.name for path in folder.glob("stock*")) == ["stock.pt"]
    return output


def translations(data: Path, ours: Path) -> list[str]:
    """By the checkpoint that was exported, with the plugin."""
    lines = scores(generate(data, ours, "--beam", "3").stdout)
    assert len(lines) == 60
    return lines


def stock_translations(data: Path, stock: Path) -> list[str]:
    flags = ["--path", str(stock), *LIMITS, "--beam", "3"]
    return scores(stock_command("fairseq-generate", data, stock.parent, *flags))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fairseq_translates_and_scores_as_before(
    name: str, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    training = train(
        toy_data, folder, *CRITERION, *MODELS[name], "--max-update", "24", "--no-epoch-checkpoints"
    )
    last = folder / "checkpoint_last.pt"
    if name == "untied":
        # As older fairseqs wrote it: a Namespace of all options, and no config.
        state = torch.load(last, weights_only=True)
        torch.save({**state, "args": state["cfg"]["model"], "cfg": None}, last)
    stock = export(last, tmp_path, capsys)
    assert stock.stat().st_size < 0.5 * last.stat().st_size
    assert stock_translations(toy_data, stock) == translations(toy_data, last)

    # The loss of the training's own validation, by the criterion that the new checkpoint names.
    losses = {
        key: logged(training.stdout + training.stderr, f"valid_{key}", kind="valid")[-1]
        for key in ("loss", "nll_loss")
    }
    common = ["--max-tokens", "500", "--log-format", "json"]
    if name == "tied":
        line = ["--task", "translation", "--path", str(stock), *common]
        said = stock_command("fairseq-validate", toy_data, tmp_path, *line)
    else:
        # Fine-tuned by nothing at all, it must still have it.
        line = ["--finetune-from-model", str(stock), "--arch", "transformer_tiny", *LAYERS]
        line += ["--optimizer", "adam"]
        line += ["--lr", "1e-12", "--max-update", "1", "--no-save", "--num-workers", "0", *common]
        line += ["--save-dir", str(tmp_path / "tuned")]
        line += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
        said = stock_command("fairseq-train", toy_data, tmp_path, *line)
    for key, loss in losses.items():
        assert logged(said, f"valid_{key}", kind="valid") == [pytest.approx(loss, abs=1.1e-3)]


@pytest.mark.slow
def test_what_the_encoder_reads_is_mapped(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """fairseq has no such tie: the encoder gets a table of its own, the decoder stays tied."""
    flags = [*CRITERION, *MODELS["tied"], "--mhe-tie", "linear", "--max-update", "24"]
    train(toy_data, tmp_path / "checkpoints", *flags, "--no-epoch-checkpoints")
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    state = torch.load(last, weights_only=True)
    state["model"]["encoder.embed_tokens.map"].normal_(std=0.3)
    torch.save(state, last)
    stock = export(last, tmp_path, capsys)
    weights = torch.load(stock, weights_only=True)["model"]
    tables = [weights[f"{name}.weight"] for name in ("decoder.output_projection", "decoder.embed_tokens")]
    assert torch.equal(*tables) and not torch.equal(tables[0], weights["encoder.embed_tokens.weight"])
    line = ["fairseq-validate", str(toy_data), *PAIR, "--cpu", *ALL_SENTENCES, "--max-tokens", "500"]
    done = run_command(
        [*line, "--path", str(last), *PLUGIN, "--task", "mhe_translation", "--log-format", "json"]
    )
    wanted = logged(done.stdout + done.stderr, "valid_nll_loss", kind="valid")
    said = stock_command(
        "fairseq-validate", toy_data, tmp_path, "--task", "translation", "--path", str(stock),
        "--max-tokens", "500", "--log-format", "json",
    )  # fmt: skip
    assert logged(said, "valid_nll_loss", kind="valid") == pytest.approx(wanted, abs=1.1e-3) and wanted


@pytest.mark.slow
@pytest.mark.parametrize("tie", ["linear", "exact"])
def test_a_cascade_is_trained_on_with_fairseqs_softmax(
    tie: str, toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its body is what it was, the rows of groups in the embeddings; fairseq goes on from there."""
    cascade = ["--mhe-head", "cascade", "--share-all-embeddings", "--mhe-tie", tie]
    cascade += ["--max-update", "24", "--no-epoch-checkpoints"]
    train(toy_data, tmp_path / "cascade", *CRITERION, *cascade)
    last, stock = tmp_path / "cascade" / "checkpoint_last.pt", tmp_path / "start.pt"
    assert main(["export", str(last), "-o", str(stock)]) == 1
    assert "or train on with a softmax what --body writes" in capsys.readouterr().err
    assert main(["export", str(last), "-o", str(stock), "--body"]) == 0
    said = capsys.readouterr().out
    assert "in place of a cascade head: " in said and "tied to the decoder's" not in said
    sharing = "--share-all-embeddings" if tie == "exact" else "--share-decoder-input-output-embed"
    restored = [sharing, "--finetune-from-model", str(stock)]
    assert f"--arch transformer_tiny {' '.join(restored)} ..." in said
    (ours,), _ = load_model_ensemble([str(last)])
    (theirs,), _ = load_model_ensemble([str(stock)])
    tokens = torch.tensor([[4, 5, 6, 7, 2]])
    inputs = {"src_tokens": tokens, "src_lengths": torch.tensor([5]), "prev_output_tokens": tokens.roll(1)}
    features = [model.eval()(**inputs, features_only=True)[0] for model in (ours, theirs)]
    torch.testing.assert_close(*features)
    table = theirs.decoder.output_projection.weight
    assert table is theirs.decoder.embed_tokens.weight
    assert (table is theirs.encoder.embed_tokens.weight) == (tie == "exact")
    line = [*restored, "--arch", "transformer_tiny", *LAYERS]
    line += ["--optimizer", "adam", "--lr", "0.002", "--max-update", "8", "--num-workers", "0", "--no-save"]
    line += ["--max-tokens", "500", "--log-format", "json", "--log-interval", "1", "--seed", "1"]
    line += ["--save-dir", str(tmp_path / "softmax")]
    line += ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    losses = logged(stock_command("fairseq-train", toy_data, tmp_path, *line), "nll_loss")
    # Not begun anew: that is some log2(V) bits.
    assert len(losses) == 8 and losses[-1] < losses[0] < math.log2(len(table))


@pytest.mark.slow
def test_a_softmax_trained_by_hydra(
    toy_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["_name=mhe_transformer_tiny", "mhe_head=softmax", "mhe_mixtures=null"]
    model += ["share_all_embeddings=false"]
    hydra_train(tmp_path, toy_data, *(f"model.{each}" for each in model))
    last = tmp_path / "checkpoints" / "checkpoint_last.pt"
    stock = export(last, tmp_path, capsys)
    expected = translations(toy_data, last)
    assert stock_translations(toy_data, stock) == expected
    # Not because anything would do: another table translates otherwise.
    state = torch.load(stock, weights_only=True)
    state["model"]["decoder.output_projection.weight"].mul_(1.1)
    torch.save(state, stock)
    assert stock_translations(toy_data, stock) != expected


@pytest.mark.slow
def test_a_language_model_has_the_same_perplexity(
    language_models: dict[str, Path], lm_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of an architecture for which fairseq itself would choose an adaptive softmax."""
    output = tmp_path / "stock.pt"
    assert main(["export", str(language_models["sampling"]), "-o", str(output)]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"{output}: fairseq's own --arch transformer_lm, ")
    assert "once a sampling head: V x d = 48 x 32, float32, not tied" in said
    assert f"  fairseq-eval-lm {lm_data} --path {output} --tokens-per-sample 40\n" in said
    # Not by sentences: without the plugin fairseq asks numpy for a name that numpy 2 has not.
    line = [
        "fairseq-eval-lm",
        str(lm_data),
        "--cpu",
        "--tokens-per-sample",
        "40",
        "--sample-break-mode",
        "none",
    ]
    theirs = run_command([*line, "--path", str(output)], cwd=tmp_path, env={"PYTHONPATH": ""})
    ours = run_command([*line, "--path", str(language_models["sampling"]), *PLUGIN])
    found = [
        re.findall(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", run.stderr) for run in (ours, theirs)
    ]
    assert found[0] == found[1] and len(found[0]) == 1
    assert main(["export", str(language_models["cascade"]), "-o", str(tmp_path / "none.pt")]) == 1
    assert "a cascade head, and no softmax of V x d equals it" in capsys.readouterr().err


@pytest.fixture
def ours(tmp_path: Path) -> Path:
    """A checkpoint, of a few weights only."""
    path = tmp_path / "ours.pt"
    torch.save(checkpoint(), path)
    return path


@pytest.mark.parametrize("style", ["config", "namespace"])
def test_the_report(style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = checkpoint(tied=True)
    state["cfg"]["task"]["data"] = str(tmp_path)
    state["model"] = {
        name: each.half() if each.is_floating_point() else each for name, each in state["model"].items()
    }
    if style == "namespace":
        everything = vars(state["cfg"].pop("model"))
        state["args"] = argparse.Namespace(
            **everything, data=str(tmp_path), source_lang="en", target_lang="de", label_smoothing=0.3
        )
        state["cfg"] = None
    torch.save(state, tmp_path / "ours.pt")
    output = tmp_path / "a name.pt"
    assert main(["export", str(tmp_path / "ours.pt"), "-o", str(output)]) == 0
    assert capsys.readouterr().out == (
        f"{output}: fairseq's own --arch transformer_tiny, {output.stat().st_size:,} bytes; it needs no "
        "--user-dir\n"
        "  output layer, once a sampling head: V x d = 6 x 4, float16, tied to the decoder's embeddings\n"
        f"  fairseq-generate {tmp_path} -s en -t de --path '{output}' --beam 5 "
        "--required-batch-size-multiple 1\n"
    )
    options = torch.load(output, weights_only=True)["cfg"]
    assert options["model"]["_name"] == "transformer_tiny" and options["model"]["encoder_layers"] == 3
    assert options["criterion"]["_name"] == "label_smoothed_cross_entropy"
    assert options["criterion"]["label_smoothing"] == 0.3


def refused(arguments: list[Any], capsys: pytest.CaptureFixture[str]) -> str:
    """The one sentence that ``mhe export`` ends with."""
    assert main(["export", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mhe: ") and printed.err.count("\n") == 1
    return printed.err


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        *DAMAGED.items(),
        ("hostile", "system, which is no part of a fairseq checkpoint"),
        (
            "as softmax",
            "has a cascade head, and no softmax of V x d equals it; heads that can be exported are",
        ),
        ("product", "has a product head, and no softmax of V x d equals it; heads that can be exported are"),
        ("cascade", "has a cascade head, and no softmax of V x d equals it; heads that can be exported are"),
        ("stock", "is of fairseq's own --arch transformer_tiny; export is for mhe_transformer"),
    ],
)
def test_what_cannot_be_exported(
    what: str, sentence: str, ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output, marker = tmp_path / "given.pt", tmp_path / "stock.pt", tmp_path / "was_run"
    content = ours.read_bytes()
    if what in DAMAGED:
        write_damaged(what, path, content)
    elif what == "hostile":
        torch.save({**checkpoint(), "x": Exploit(marker)}, path)
    elif what in ("product", "cascade", "as softmax"):
        torch.save(checkpoint("product" if what == "product" else "cascade"), path)
    elif what == "stock":
        torch.save(checkpoint(arch="transformer_tiny"), path)
    before = sorted(tmp_path.iterdir())
    form = ["--as", "softmax"] if what == "as softmax" else []
    said = refused([path, "-o", output, *form], capsys)
    assert form == [] or "fit a softmax to it first (mhe convert --head softmax)" in said
    assert str(path) in said and sentence in said
    assert sorted(tmp_path.iterdir()) == before


def test_where_it_cannot_be_written(ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = ours.read_bytes()
    there = tmp_path / "there.pt"
    there.write_text("mine")
    assert "exists; give another one, or --force to replace it" in refused([ours, "-o", there], capsys)
    assert there.read_text() == "mine"
    assert "is the checkpoint to export" in refused([ours, "-o", ours, "--force"], capsys)
    assert f"the output {tmp_path} is a directory" in refused([ours, "-o", tmp_path], capsys)
    nowhere = tmp_path / "none" / "stock.pt"
    assert f"there is no directory {nowhere.parent}" in refused([ours, "-o", nowhere], capsys)
    assert sorted(tmp_path.iterdir()) == [ours, there] and ours.read_bytes() == content

    assert main(["export", str(ours), "-o", str(there), "--force"]) == 0
    assert "decoder.output_projection.weight" in torch.load(there, weights_only=True)["model"]
    assert ours.read_bytes() == content


def test_a_disk_that_fills_up_leaves_what_was_there(
    ours: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken_off(state: object, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise RuntimeError("unexpected pos 64 vs 0")

    output = tmp_path / "there.pt"
    output.write_text("mine")
    monkeypatch.setattr(torch, "save", broken_off)
    said = refused([ours, "-o", output, "--force"], capsys)
    assert f"the output {output} cannot be written (not all of it: the disk is full" in said
    assert output.read_text() == "mine" and sorted(tmp_path.iterdir()) == [ours, output]
