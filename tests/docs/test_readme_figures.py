"""README.md: short, and every figure in its sentences is one of a record's, or what a command calculates."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPO, run_command

README = (REPO / "README.md").read_text(encoding="utf-8")
RESULTS = REPO / "docs" / "results"


def row(record: str, head: str) -> dict[str, Any]:
    rows = json.loads((RESULTS / f"{record}.json").read_text(encoding="utf-8"))["rows"]
    found: dict[str, Any] = next(each for each in rows if each["head"] == head)
    return found


def test_at_most_160_lines() -> None:
    assert len(README.splitlines()) <= 160


def test_figures_of_the_gain_are_recorded() -> None:
    gain = README[README.index("## What you gain") : README.index("## How it works")].replace("\n", " ")
    step, search = row("training-step", "cascade"), row("beam-search", "cascade")
    small, large = step["speed_32768"], step["speed_262144"]
    assert f"{small}x as fast as the softmax's at V = 32,768 and {large}x at V = 262,144" in gain
    assert f"with {step['memory_32768']:.0%} and {step['memory_262144']:.0%} of its memory" in gain
    assert f"six layers is {search['speed_32768']}x and {search['speed_262144']}x as fast" in gain
    models = [row("language-models", head)["perplexity"][0] for head in ("cascade", "softmax")]
    assert f"{models[0]} with the cascade and {models[1]} with the softmax" in gain
    of_study = [json.loads(line) for line in (RESULTS / "translation" / "times.jsonl").open(encoding="utf-8")]
    times = {each["variant"]: statistics.median(each["search_seconds"]) for each in of_study}
    assert f"cascade was [{times['softmax'] / times['cascade']:.2f}x](docs/results.md#cost) as fast" in gain


def test_figures_of_the_heads_are_recorded() -> None:
    by_model = {
        name: {each["model"]: each for each in json.loads((RESULTS / f"{name}.json").read_text())["rows"]}
        for name in ("gain", "linear-tie", "linear-tie-heads", "small-sampling")
    }
    gain, two, one, small = by_model.values()
    sampling = json.loads((RESULTS / "linear-tie-sampling.json").read_text(encoding="utf-8"))["rows"][1]
    assert (sampling["model"], sampling["seeds"]) == ("sampling-predicted", "1, 2")
    recorded = {
        "softmax": two["softmax"],
        "softmax, `--mhe-tie linear`": one["softmax-linear"],
        "cascade": two["cascade"],
        "sampling": sampling,
    }
    assert gain.keys() == recorded.keys()
    for model, row in gain.items():
        assert {key: row[key] for key in ("bits", "bleu", "behind")} == {
            key: recorded[model][key] for key in ("bits", "bleu", "behind")
        }
    short = -small["cascade"]["behind"]
    assert f"([{short:.1f} BLEU behind](docs/results.md#a-linear-tie) after 1,200 updates of" in README
    long: dict[tuple[str, int], list[float]] = {}
    for name in ("long-training-linear", "long-training-linear-2"):
        for each in json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]:
            long.setdefault((each["model"].split(",")[0], each["updates"]), []).append(each["behind"])
    early, ahead = (
        " and ".join(f"{each:.1f}" for each in long[at]) for at in (("cascade", 12000), ("sampling", 20000))
    )
    (behind,) = {f"{-each:.1f}" for each in long["cascade", 20000]}
    assert f"after 12,000 updates still {early} BLEU ahead of fairseq's" in README
    assert f"after 20,000 [{behind} BLEU behind](docs/results.md#long-trainings) (two seeds)" in README
    assert f"after 20,000 updates [{ahead} BLEU ahead](docs/results.md#long-trainings) (two seeds)" in README
    bleu = {model: each["bleu"] for model, each in one.items()}
    gaps = bleu["softmax-linear"] - bleu["cascade"], bleu["softmax-linear"] - bleu["softmax"]
    assert f"[{gaps[0]:.1f} BLEU behind a softmax with the same linear tie]" in README
    assert f"the reference; {gaps[1]:.1f} BLEU better with `--mhe-tie linear`" in README
    assert f"{sampling['behind']:.0f} BLEU ahead of fairseq's" in README


@pytest.mark.slow
def test_the_vocabulary_from_which_a_head_pays_is_what_plan_calculates(tmp_path: Path) -> None:
    said = re.search(r"training: about ([\d,]+), search: about ([\d,]+)", README)
    assert said and "d = 512, an H100, 4,096 tokens a batch" in README
    dictionary = tmp_path / "dict.txt"
    dictionary.write_text("".join(f"w{n} {10**9 // (n + 1)}\n" for n in range(32764)))
    line = ["mhe", "plan", "--dict", str(dictionary), "--dim", "512", "--device", "cuda"]
    advice = " ".join(run_command([*line, "--gpu", "h100", "--batch-tokens", "4096"]).stdout.split())
    found = re.search(r"below a V of about ([\d,]+), nor in search below a V of about ([\d,]+)", advice)
    assert found, advice
    for stated, calculated in zip(said.groups(), found.groups(), strict=True):
        ratio = int(stated.replace(",", "")) / int(calculated.replace(",", ""))
        assert 0.75 < ratio < 1.34, f"README says about {stated}, mhe plan {calculated}"


@pytest.mark.slow
def test_the_vocabulary_from_which_predicted_draws_pay_is_what_plan_calculates(tmp_path: Path) -> None:
    said = re.search(r"training from about ([\d,]+) on; search is the softmax's", README)
    assert said
    vocab = int(said[1].replace(",", ""))
    dictionary = tmp_path / "dict.txt"
    for size, pays in ((vocab, True), (round(0.9 * vocab), False)):
        dictionary.write_text("".join(f"w{n} {10**9 // (n + 1)}\n" for n in range(size - 4)))
        line = ["mhe", "plan", "--dict", str(dictionary), "--dim", "512", "--json"]
        heads = json.loads(run_command([*line, "--gpu", "h100", "--batch-tokens", "4096"]).stdout)["heads"]
        ms = {each["head"].split()[0]: each["gpu"]["train_ms"] for each in heads}
        assert (ms["predicted"] < ms["softmax"]) is pays, f"V = {size:,}: {ms}"
