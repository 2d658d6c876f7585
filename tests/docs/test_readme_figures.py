"""README.md: short, and every figure in its sentences is one of a record's, or what a command calculates."""

from __future__ import annotations

import json
import re
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
    tied = json.loads((RESULTS / "linear-tie.json").read_text(encoding="utf-8"))["rows"]
    bleu = {each["model"]: f"{each['bleu'][0]:.2f}" for each in tied}
    assert f"the cascade has {bleu['cascade']} BLEU with that tie, the softmax {bleu['softmax']} (two" in gain
    heads = json.loads((RESULTS / "linear-tie-heads.json").read_text(encoding="utf-8"))["rows"]
    one = {each["model"]: each["bleu"] for each in heads}
    said = f"the sampling head has {one['sampling-predicted']:.2f}, the softmax {one['softmax']:.2f}, and "
    assert said + f"{one['softmax-linear']:.2f} if it gets the tie, too" in gain
    behind = one["softmax-linear"] - one["cascade"], one["softmax-linear"] - one["softmax"]
    assert f"[{behind[0]:.1f} BLEU behind a softmax with the same linear tie]" in README
    assert f"the reference; {behind[1]:.1f} BLEU better with `--mhe-tie linear`" in README


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
