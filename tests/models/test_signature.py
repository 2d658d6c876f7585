"""The line that says what a model was trained with."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import mhe_fairseq
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.signature import signature
from tests.commands import CRITERION, generate, train
from tests.helpers import run_command
from tests.language_model import SMALL, lm_train

SYMBOLS = [f"s{n}" for n in range(20)]


def signed(**settings: Any) -> dict[str, str]:
    given = {"arch": "mhe_transformer", "task": "translation", "criterion": "mhe_cross_entropy", "seed": 1}
    given |= {"label_smoothing": 0.1, "distributed_world_size": 1, "lr": [0.1], "fp16": False}
    args = argparse.Namespace(**(given | settings))
    line = signature(args, HeadOptions.resolve(args, SYMBOLS))
    return dict(part.split(":") for part in line.split("|"))


def test_parts() -> None:
    found = signed(mhe_head="product", mhe_lengths="4,5")
    settings, codebook = found.pop("settings"), found.pop("codebook")
    assert re.fullmatch(r"[0-9a-f]{8}", settings) and re.fullmatch(r"[0-9a-f]{16}", codebook)
    assert found == {
        "mhe": mhe_fairseq.__version__,
        "fairseq": "0.12.3",
        "torch": torch.__version__.partition("+")[0],
        "task": "translation",
        "arch": "mhe_transformer",
        "head": "product",
        "lengths": "4x5",
        "criterion": "mhe_cross_entropy",
        "smoothing": "0.1",
        "ranks": "1",
        "precision": "fp32",
        "seed": "1",
    }


@pytest.mark.parametrize(
    "settings", [{"lr": [0.2]}, {"clip_norm": 1.0}, {"mhe_head": "sampling"}, {"update_freq": [2]}]
)
def test_what_is_learned_otherwise_has_other_settings(settings: dict[str, Any]) -> None:
    assert signed(**settings)["settings"] != signed()["settings"]


def test_prototypes_of_groups() -> None:
    """Named where there are several; where the flag is not given all is as before there was one."""
    without, given = signed(mhe_head="cascade"), signed(mhe_head="cascade", mhe_group_prototypes=4)
    assert given.pop("prototypes") == "4" and given["settings"] != without["settings"]
    assert given | {"settings": ""} == without | {"settings": ""}
    assert signed(mhe_head="cascade", mhe_group_prototypes=None) == without


@pytest.mark.parametrize(
    "settings",
    [{"save_dir": "a"}, {"log_format": "json"}, {"max_update": 7}, {"distributed_rank": 3}, {"device_id": 1}],
)
def test_where_it_is_learned_is_no_setting(settings: dict[str, Any]) -> None:
    assert signed(**settings) == signed()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"fp16": True}, "fp16"),
        ({"memory_efficient_bf16": True}, "bf16"),
        ({"amp": True, "fp16": True}, "amp"),
    ],
)
def test_precision(settings: dict[str, Any], name: str) -> None:
    assert signed(**settings)["precision"] == name


def printed(output: str) -> list[str]:
    return re.findall(r"mhe: signature (\S+)", output)


@pytest.mark.slow
def test_a_translation_is_traced_to_its_training(toy_data: Path, tmp_path: Path) -> None:
    done = train(toy_data, tmp_path, *CRITERION, "--max-update", "2")
    [line] = printed(done.stdout + done.stderr)
    assert "|head:cascade|" in line and "|seed:1|" in line
    checkpoint = tmp_path / "checkpoint_last.pt"
    assert torch.load(checkpoint, weights_only=True)["cfg"]["model"].mhe_signature == line
    again = train(toy_data, tmp_path, *CRITERION, "--max-update", "3")
    assert printed(again.stdout + again.stderr) == [line]
    results = tmp_path / "results"
    assert printed(generate(toy_data, checkpoint).stdout) == [line]
    generate(toy_data, checkpoint, "--results-path", str(results))
    assert printed((results / "generate-test.txt").read_text()) == [line]
    assert run_command(["mhe", "signature", str(checkpoint)]).stdout == f"{line}\n"


@pytest.mark.slow
def test_of_a_language_model(lm_data: Path, tmp_path: Path) -> None:
    [log] = lm_train(lm_data, (tmp_path, "", [*SMALL, "--max-update", "2"]))
    [line] = printed(log)
    for part in ("|task:language_modeling|", "|arch:mhe_transformer_lm|", "|seed:1|"):
        assert part in line
    assert run_command(["mhe", "signature", str(tmp_path / "checkpoint_last.pt")]).stdout == f"{line}\n"
