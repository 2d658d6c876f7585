"""scripts/study/label_loss_costs.py at small sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.study.label_loss_costs import main


def test_a_cascade_holds_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["--labels", "900,2500", "--documents", "16", "--each", "3", "--dim", "8", "--rounds", "1"]
    assert main([*line, "--json", str(tmp_path / "costs.json")]) == 0
    rows = json.loads((tmp_path / "costs.json").read_text())["rows"]
    assert [(row["labels"], row["head"]) for row in rows] == [
        (900, "dense"), (900, "cascade"), (2500, "dense"), (2500, "cascade"),
    ]  # fmt: skip
    dense, cascade = rows[2]["extra_bytes"], rows[3]["extra_bytes"]
    # Logits and what softplus keeps of them are 16 x 2,500 numbers.
    assert dense >= 16 * 2500 * 4 and cascade < dense
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize("flags", [["--labels", "many"], ["--labels", "4"], ["--rounds", "0"]])
def test_bad_numbers(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    assert capsys.readouterr().err.startswith("label_loss_costs.py: error: --labels are whole numbers")
