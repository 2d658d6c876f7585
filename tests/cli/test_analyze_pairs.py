"""`mhe analyze` of models of many languages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mhe_fairseq.analysis.pairs import PairSums
from mhe_fairseq.cli.main import main
from tests.helpers import TOY_SIZES
from tests.many_languages import FEW, PAIRS


def test_sums_of_a_pair() -> None:
    mask = torch.tensor([False, False, True, True, False])
    sums = PairSums({"aa-bb": mask, "bb-aa": mask}, eos=2)
    probs = torch.tensor([[0.1, 0.0, 0.2, 0.5, 0.2], [0.1, 0.1, 0.6, 0.1, 0.1]])
    sums.update("aa-bb", probs.log(), torch.tensor([3, 2]))
    sums.update("aa-bb", probs[:1].log(), torch.tensor([4]))
    (found,) = sums.summaries()
    assert (found.pair, found.tokens) == ("aa-bb", 3)
    assert found.loss == pytest.approx(-(probs[0, 3] * probs[1, 2] * probs[0, 4]).log().item() / 3)
    assert found.correct == pytest.approx(2 / 3) and found.in_language == pytest.approx(2.1 / 3)
    assert found.eos == pytest.approx(1.0)


@pytest.mark.slow
def test_a_table_of_pairs(
    many_models: dict[str, Path], many_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "analysis.json"
    line = ["analyze", str(many_models["cascade"]), str(many_data), "--json", str(output)]
    assert main([*line, "--against", str(many_models["product"])]) == 0
    shown = capsys.readouterr().out
    assert "Pairs; in the language: probability of tokens that its training text has" in shown
    found = json.loads(output.read_text())
    for model in found["models"]:
        pairs = model["pairs"]
        assert [each["pair"] for each in pairs] == PAIRS
        total = model["total"]
        assert sum(each["tokens"] for each in pairs) == total["tokens"]
        lost = sum(each["tokens"] * each["loss"] for each in pairs)
        assert lost / total["tokens"] == pytest.approx(total["loss"], rel=1e-5)
        assert all(0 < each["in_language"] < 1 and each["eos"] > 0 for each in pairs)
    # Every sentence ends once, and begins with its language.
    sizes = dict(zip(PAIRS, (TOY_SIZES["valid"], TOY_SIZES["valid"], FEW["valid"]), strict=True))
    for each in found["models"][0]["pairs"]:
        source, target = each["pair"].split("-")
        name = "aa-cc" if "cc" in (source, target) else "aa-bb"
        words = (many_data.parent / "text" / f"valid.{name}.{target}").read_text().split()
        assert each["tokens"] == len(words) + 2 * sizes[each["pair"]]
    assert main([*line, "--limit", "200"]) == 0
    assert json.loads(output.read_text())["models"][0]["total"]["tokens"] == 200
