"""What `mhe analyze` prints, writes and draws of given numbers."""

from __future__ import annotations

import io
import json

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from mhe_fairseq.analysis.bands import Bands
from mhe_fairseq.analysis.loss_parts import LossParts
from mhe_fairseq.analysis.summary import Summary, summarise
from mhe_fairseq.cli.analyze_plot import draw
from mhe_fairseq.cli.analyze_report import Report
from mhe_fairseq.coding import Codebook

SYMBOLS = ["<s>", "[b]", "</s>", "x"]


def summary(*probs: list[float], target: list[int], pairs: list[tuple[int, int]] | None = None) -> Summary:
    parts = LossParts(Codebook((2, 2)))
    parts.update((torch.tensor(probs) + 1e-30).log(), torch.tensor(target))
    return summarise(parts, Bands(torch.tensor([0, 7, 5, 3]), eos=2), 3, pairs)


ONE = summary([0.1, 0.4, 0.3, 0.2], [0.1, 0.1, 0.8, 0.0], target=[1, 1])
OTHER = summary([0.1, 0.4, 0.3, 0.2], [0.0, 0.9, 0.1, 0.0], target=[1, 1], pairs=[(0, 1)])


def report(names: list[str], *summaries: Summary) -> Report:
    about = {
        "checkpoints": [f"{name}.pt" for name in names],
        "models": ["Model"] * len(names),
        "data": "DATA",
        "subset": "valid",
        "limit": None,
        "left_out": 0,
        "codebook": {"lengths": (2, 2), "fingerprint": "f", "source": "planned"},
    }
    return Report(names, list(summaries), SYMBOLS, ["What is largest."], about)


def printed(given: Report) -> str:
    console = Console(file=io.StringIO(), width=132, highlight=False)
    given.show(console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def row(text: str, *starts: str) -> list[str]:
    """The cells of the line that begins with these."""
    lines = [[cell.strip() for cell in line.strip("│").split("│")] for line in text.splitlines()]
    (found,) = [cells for cells in lines if cells[: len(starts)] == list(starts)]
    return found


def test_one_model() -> None:
    text = printed(report(["cascade"], ONE))
    assert text.startswith("What is largest.\ncascade: cascade.pt, Model\n")
    assert "data: DATA, split valid, 2 target tokens\ndigits: 2 x 2, planned\n" in text
    assert "difference" not in text and "left out" not in text
    # -ln 0.4 and -ln 0.1.
    assert row(text, "1.609")[1:4] == ["2.322", "5.00", "50.0%"]
    assert row(text, "1-10", "2") == [
        "1-10",
        "2",
        "100.0%",
        "1.609",
        "100.0%",
        "50.0%",
        "100.0%",
        "35.0%",
        "0.35",
    ]
    assert row(text, "EOS", "0")[3:] == ["-", "0.0%", "-", "0.0%", "55.0%", "-"]
    # Symbols are no markup.
    assert row(text, "0 -> 1") == ["0 -> 1", "[b] -> </s>", "1", "71.5%", "2.303"]


def test_two_models() -> None:
    text = printed(report(["cascade", "softmax"], ONE, OTHER))
    assert "softmax: softmax.pt, Model" in text
    assert row(text, "cascade", "1.609")[4:6] == ["50.0%", "60.0%"]
    assert row(text, "softmax", "0.511")[4:6] == ["100.0%", "65.0%"]
    assert row(text, "difference", "+1.099")[4:6] == ["-50.0 pt", "-5.0 pt"]
    # What either has no number of has no difference.
    eos = [line for line in text.splitlines() if "EOS" in line or "│ difference │          - │" in line]
    assert len(eos) >= 2


def test_json_has_no_infinity() -> None:
    endless = summary([1.0, 0.0, 0.0, 0.0], target=[1])
    given = report(["a"], summary([1.0, 0.0, 0.0, 0.0], target=[1]))
    assert endless.total.perplexity == pytest.approx(1e30, rel=1e-3)
    parts = LossParts(Codebook((2, 2)))
    parts.update(torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf]]), torch.tensor([0]))
    parts.digit_loss[0, 0] = 1e6
    given.summaries[0] = summarise(parts, Bands(torch.ones(4).long(), eos=2), top=3)
    found = given.as_dict()
    assert found["models"][0]["total"]["perplexity"] is None
    assert json.loads(json.dumps(found, allow_nan=False))["conclusion"] == ["What is largest."]
    (pair,) = report(["a"], ONE).as_dict()["models"][0]["confused"]
    assert pair["examples"] == [{"gold": "[b]", "predicted": "</s>", "count": 1}]


@pytest.mark.parametrize("several", [False, True])
def test_the_picture(several: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []
    save = Figure.savefig

    def kept(figure: Figure, *args: object, **kwargs: object) -> None:
        figures.append(figure)
        save(figure, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", kept)
    names, summaries = (["cascade", "softmax"], [ONE, OTHER]) if several else (["cascade"], [ONE])
    assert draw(report(names, *summaries)).startswith(b"\x89PNG")
    (figure,) = figures
    loss, calibration, mass = figure.axes
    # Bars of every digit, band and model add up to the losses.
    heights = sum(patch.get_height() for patch in loss.patches)  # type: ignore[attr-defined]
    assert heights == pytest.approx(sum(each.total.loss for each in summaries))
    legend = loss.get_legend()
    assert legend is not None
    first = "cascade, digit 1" if several else "digit 1"
    assert legend.get_texts()[0].get_text() == f"{first}: {ONE.digits[0].loss:.2f}"
    assert len(calibration.lines) == 1 + len(summaries)
    ratios = {text.get_text() for text in mass.texts}
    assert "0.35" in ratios
    words = [text.get_text() for text in figure.texts]
    assert "1.609" in words[0] and "What is largest." in words[1]
    assert ("softmax" in words[0]) == several
