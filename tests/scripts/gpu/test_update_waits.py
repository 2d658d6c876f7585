"""Waits of the host in an update: what is followed, what is told, and that they stay few."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from scripts.gpu.device_numbers import DeviceNumbers
from tests.commands import CRITERION, train_line
from tests.helpers import REPO, run_command
from tests.masked_lm import pretrain, run_lines

SCRIPT = REPO / "scripts" / "gpu" / "update_waits.py"


def test_numbers_are_followed() -> None:
    numbers, table, other = DeviceNumbers(), torch.ones(3, 2), torch.ones(3)
    numbers.add({"weights": [table]})
    assert numbers.has(table[1:]) and numbers.has((1, {"x": table})) and not numbers.has(other)
    product = table.sum()
    numbers.follow((table,), product)
    assert numbers.has(product)
    numbers.follow((other,), (fresh := other + 1))
    assert not numbers.has(fresh)
    numbers.remove(product)
    assert not numbers.has(product) and numbers.has(table)


def test_a_storage_that_is_gone_is_not_taken_for_another() -> None:
    numbers = DeviceNumbers()
    for _ in range(50):
        numbers.add(torch.ones(1000))
    assert not any(numbers.has(torch.ones(1000)) for _ in range(50))


def waits_of(folder: Path, lines: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """Name -> what the script finds of a training, of ["train", arguments]."""
    folder.mkdir()
    again = {
        name: ["python", str(SCRIPT), "--json", str(folder / f"{name}.json"), "--", *line[1:]]
        for name, line in lines.items()
    }
    for each in run_lines(folder / "logs", again).values():
        assert each.status == 0, each.said[-3000:]
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in again}


@pytest.mark.slow
def test_an_update_has_few_waits(toy_data: Path, lm_data: Path, tmp_path: Path) -> None:
    common = ["--log-format", "simple", "--log-interval", "100", "--no-save", "--disable-validation"]

    def translation(*flags: str, arch: str = "mhe_transformer_tiny") -> list[str]:
        return ["train", *train_line(toy_data, tmp_path / "none", *common, *flags, arch=arch)[1:]]

    stock = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]
    product = [*CRITERION, "--mhe-head", "product"]
    masked = pretrain(lm_data, tmp_path / "none", "--mhe-head", "product", *common, "--fp16")
    found = waits_of(
        tmp_path / "waits",
        {
            "stock": translation(*stock, "--fp16", arch="transformer_tiny"),
            "fp32": translation(*product),
            "bf16": translation(*product, "--bf16"),
            "fp16": translation(*product, "--fp16"),
            "masked": masked,
        },
    )
    places = {
        name: {each["place"].partition(":")[0]: each["times"] for each in waits}
        for name, waits in found.items()
    }
    # The gradients' norm and what is logged, once each.
    assert all(
        sum(each["times"] for each in waits if "host_reads" in each["place"]) == 2 for waits in found.values()
    )
    encoder, decoder = (
        f"fairseq/models/transformer/transformer_{side}.py" for side in ("encoder", "decoder")
    )
    assert places["stock"].pop(encoder) == 1 and places["stock"].pop(decoder) == 1
    assert places["stock"] == {"mhe_fairseq/fairseq_fixes/host_reads.py": 1}
    for name in ("fp32", "bf16", "fp16"):
        # Of batches without padding only.
        assert places[name].pop(decoder, 0) < 1
        assert places[name] == {
            "mhe_fairseq/fairseq_fixes/host_reads.py": 1,
            "mhe_fairseq/models/padding.py": 1,
            "mhe_fairseq/models/target_count.py": 1,
        }
    assert sum(each["times"] for each in found["masked"]) <= 4


@pytest.mark.slow
def test_what_is_told(toy_data: Path, tmp_path: Path) -> None:
    line = train_line(toy_data, tmp_path, *CRITERION, "--no-save", "--disable-validation")[1:]
    few = ["--warm-up", "1", "--updates", "2"]
    done = run_command(["python", str(SCRIPT), *few, "--", *line])
    rows = [row for row in done.stdout.splitlines() if row.startswith("| `")]
    assert any("mhe_fairseq/fairseq_fixes/host_reads.py:" in row and "| 1 |" in row for row in rows)
    assert done.stdout.splitlines()[-1].endswith(" an update")
    # On a CPU the time in an operator says nothing.
    assert "host ms" not in done.stdout
    done = run_command(["python", str(SCRIPT), *few, "--", *line, "--max-update", "2"], check=False)
    assert done.returncode == 2
    assert "the training ended before update 4: give it more updates" in done.stderr.splitlines()[-1]
    done = run_command(["python", str(SCRIPT), "--updates", "0", "--", *line], check=False)
    assert "--updates is at least 1 and --warm-up 0, got 0 and 4" in done.stderr.splitlines()[-1]
