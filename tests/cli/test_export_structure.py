"""`mhe export` beside a checkpoint that fairseq itself wrote of the same architecture: key by key, type by
type."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq import checkpoint_utils

import mhe_fairseq  # noqa: F401  (allows what a checkpoint holds)
from mhe_fairseq.cli.main import main
from tests.commands import ALL_SENTENCES, PAIR, PLUGIN
from tests.helpers import run_command
from tests.language_model import SMALL
from tests.masked_lm import SMALL as SMALL_ROBERTA

COMMON = [
    "--optimizer", "adam", "--lr", "0.005", "--lr-scheduler", "inverse_sqrt", "--clip-norm", "1.0",
    "--max-tokens", "500", *ALL_SENTENCES, "--cpu", "--num-workers", "0", "--seed", "1", "--max-update", "9",
    "--no-epoch-checkpoints", "--save-dir", "checkpoints",
]  # fmt: skip
HEAD = ["--mhe-head", "sampling", "--mhe-groups", "3"]
SMOOTHED = ["--label-smoothing", "0.1", "--criterion"]
OURS, STOCK = [*SMOOTHED, "mhe_cross_entropy"], [*SMOOTHED, "label_smoothed_cross_entropy"]

#: Data, task, architecture, the model's flags, our criterion, fairseq's.
KINDS: dict[str, tuple[str, str, str, list[str], list[str], list[str]]] = {
    "translation": ("toy_data", "translation", "transformer_tiny", [], OURS, STOCK),
    "tied translation": (
        "toy_data", "translation", "transformer_tiny", ["--share-all-embeddings"],
        [*OURS, "--mhe-tie", "exact"], STOCK,
    ),
    # What the encoder reads has a table of its own in fairseq's.
    "translation with a linear tie": (
        "toy_data", "translation", "transformer_tiny", [], [*OURS, "--share-all-embeddings"],
        [*STOCK, "--share-decoder-input-output-embed"],
    ),
    "language model": ("lm_data", "language_modeling", "transformer_lm_gpt", SMALL, OURS, STOCK),
    "masked language model": (
        "lm_data", "masked_lm", "roberta_base", SMALL_ROBERTA, ["--criterion", "mhe_masked_lm"],
        ["--criterion", "masked_lm"],
    ),
}  # fmt: skip


def trained(kind: str, data: Path, folder: Path) -> tuple[Path, Path]:
    """Checkpoints of our model and of fairseq's, trained alike, in folders of one name."""
    _, task, arch, flags, mine, theirs = KINDS[kind]
    # Not by sentences: without the plugin fairseq asks numpy for a name that numpy 2 has not.
    reading = (
        PAIR if task == "translation" else ["--tokens-per-sample", "40", "--sample-break-mode", "complete"]
    )
    paths = []
    for name, own in (("ours", [*PLUGIN, *HEAD, *mine]), ("stock", theirs)):
        is_ours = name == "ours"
        prefix = "mhe_" if is_ours and task != "masked_lm" else ""
        (folder / name).mkdir()
        run_command(
            ["fairseq-train", str(data), "--task", prefix + task, *reading]
            + ["--arch", f"mhe_{arch}" if is_ours else arch, *own, *flags, *COMMON],
            cwd=folder / name,
        )
        paths.append(folder / name / "checkpoints" / "checkpoint_last.pt")
    return paths[0], paths[1]


def differences(ours: Any, stock: Any, where: str, values: bool) -> Iterator[str]:
    """What differs in type, keys, order of weights, shape; and, of numbers and text, in ``values``."""
    if type(ours) is not type(stock):
        yield f"{where}: {type(ours).__name__} {ours!r:.60}, fairseq's {type(stock).__name__} {stock!r:.60}"
    elif isinstance(ours, torch.Tensor):
        if (ours.dtype, ours.shape) != (stock.dtype, stock.shape):
            yield f"{where}: {ours.dtype} {ours.shape}, fairseq's {stock.dtype} {stock.shape}"
    elif isinstance(ours, argparse.Namespace):
        yield from differences(vars(ours), vars(stock), where, values)
    elif isinstance(ours, Mapping):
        if set(ours) != set(stock):
            yield f"{where}: more {set(ours) - set(stock)}, less {set(stock) - set(ours)}"
        elif isinstance(ours, OrderedDict) and list(ours) != list(stock):
            yield f"{where}: order {list(ours)}, fairseq's {list(stock)}"
        for key in sorted(set(ours) & set(stock), key=str):
            yield from differences(ours[key], stock[key], f"{where}.{key}", values)
        if isinstance(ours, OrderedDict):
            yield from differences(vars(ours), vars(stock), where, values)
    elif isinstance(ours, list | tuple):
        if len(ours) != len(stock):
            yield f"{where}: {ours!r:.300}, fairseq's {stock!r:.300}"
        for number, (mine, theirs) in enumerate(zip(ours, stock, strict=False)):
            yield from differences(mine, theirs, f"{where}[{number}]", values)
    elif values and ours != stock:
        yield f"{where}: {ours!r}, fairseq's {stock!r}"


def check_probabilities(kind: str, ours: Path, stock: Path, data: Path) -> None:
    """fairseq's model, of the options and weights that were written, gives the probabilities of ours."""
    found = []
    for path in (ours, stock):
        models, _, _ = checkpoint_utils.load_model_ensemble_and_task([str(path)], {"data": str(data)})
        model = models[0].eval()
        tokens = torch.tensor([[5, 9, 7, 2], [8, 4, 2, 1]])
        with torch.no_grad():
            given = (tokens, tokens.ne(1).sum(1), tokens.roll(1)) if "translation" in kind else (tokens,)
            found.append(model.get_normalized_probs(model(*given), log_probs=True))
        assert type(model).__name__.startswith("MHE") == (path == ours)
    torch.testing.assert_close(found[0][:, :3], found[1][:, :3])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_fairseq_would_have_written_it(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = request.getfixturevalue(KINDS[kind][0])
    ours, theirs = trained(kind, data, tmp_path)
    stock = torch.load(theirs, weights_only=True)
    # What export leaves out.
    del stock["last_optimizer_state"]
    assert main(["export", str(ours), "-o", str(tmp_path / "same.pt"), "--namespace"]) == 0
    same = torch.load(tmp_path / "same.pt", weights_only=True)
    assert list(same) == list(stock)
    assert not [*differences(same["cfg"], stock["cfg"], "cfg", values=True)]
    rest = [key for key in stock if key != "cfg"]
    found = [each for key in rest for each in differences(same[key], stock[key], key, values=False)]
    assert not found
    last, theirs_last = (each["optimizer_history"][-1] for each in (same, stock))
    # Their losses differ.
    assert {**last, "lr_scheduler_state": 0} == {**theirs_last, "lr_scheduler_state": 0}
    assert last["num_updates"] == 9
    # The test would see it.
    assert [*differences(torch.load(ours, weights_only=True)["cfg"], stock["cfg"], "cfg", values=True)]

    # The other form has the same in a type that torch loads anywhere.
    assert main(["export", str(ours), "-o", str(tmp_path / "safe.pt")]) == 0
    safe = torch.load(tmp_path / "safe.pt", weights_only=True)
    model, expected = safe["cfg"].pop("model"), same["cfg"].pop("model")
    assert not [*differences(safe, same, "", values=True)]
    if kind == "language model":
        assert not [*differences(model, expected, "model", values=True)]
    else:
        assert type(model) is OrderedDict and type(expected) is argparse.Namespace
        assert vars(model) == dict(model) == vars(expected)
        # An attribute hides no method of a dict that has its name.
        assert not set(model) & set(dir(OrderedDict()))
    check_probabilities(kind, ours, tmp_path / "safe.pt", data)
