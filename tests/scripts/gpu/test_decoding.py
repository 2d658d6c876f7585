"""Part (e): what searches are compared by, and what its tables make of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mhe_fairseq.heads import OutputHead, SoftmaxHead
from scripts.gpu import search_case
from scripts.gpu.decoding import show
from scripts.gpu.decoding import spec as spec_of
from scripts.gpu.parts import Outcome, Settings
from scripts.gpu.search_case import Searches, Spec, compare, examine, per_step

HERE = Settings(torch.device("cpu"), smoke=True, jobs=1)


def tiny(head: str) -> Spec:
    return Spec(**spec_of(head, 120, HERE))


def hypothesis(tokens: list[int], scores: list[float]) -> dict[str, torch.Tensor]:
    positional = torch.tensor(scores)
    return {"tokens": torch.tensor(tokens), "positional_scores": positional, "score": positional.mean()}


def test_differences() -> None:
    one = [
        [hypothesis([5, 2], [-1.0, -2.0]), hypothesis([6, 2], [-2.0, -2.0])],
        [hypothesis([7, 2], [-1.0, 0])],
    ]
    assert compare(one, one) == {
        "sentences": 2, "hypotheses": 3, "differ": 0, "best_differ": 0, "largest_score_difference": 0.0,
        "mean_score_lost": 0.0,
    }  # fmt: skip
    second = [[one[0][0], hypothesis([9, 2], [-2.0, -2.0])], [hypothesis([7, 2], [-0.75, 0])]]
    seen = compare(one, second)
    assert seen["differ"] == 1 and seen["best_differ"] == 0
    assert seen["largest_score_difference"] == pytest.approx(0.25)
    assert seen["mean_score_lost"] == pytest.approx(0.125 / 2)
    best = compare(one, [[hypothesis([5, 3, 2], [-1.0, -1, -2]), one[0][1]], one[1]])
    assert best["differ"] == best["best_differ"] == 1
    fewer = compare(one, [one[0][:1], one[1]])
    assert fewer["differ"] == 1 and fewer["hypotheses"] == 3


def test_searches_of_one_head_agree_and_cost_what_is_counted() -> None:
    found = examine(tiny("cascade-tied"))
    assert found["wrong"] == "" and set(found["differences"]) == {"fp32", "fp16"}
    # 2 sentences of 2 tokens and EOS.
    assert {each["tokens"] for each in found["speed"].values()} == {6}
    per = found["per_step"]
    assert per["compact"]["operators"] != per["wide"]["operators"]
    assert per["softmax"]["operators"] > 50 and per["softmax"]["waits"] > 0


def test_what_a_step_costs_grows_with_the_body() -> None:
    shallow, deep = (Searches(Spec(**spec_of("product", 120, HERE) | {"layers": n})) for n in (1, 2))
    ours, theirs = per_step(shallow, "wide"), per_step(deep, "wide")
    assert theirs["operators"] > ours["operators"] + 20 and theirs["waits"] == ours["waits"]


def test_a_search_that_finds_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Searches.run

    def other(self: Searches, name: str, *args: Any, **kwargs: Any) -> Any:
        found = run(self, name, *args, **kwargs)
        if name == "compact":
            found[0][0]["tokens"] = found[0][0]["tokens"].clone().fill_(9)
        return found

    monkeypatch.setattr(search_case.Searches, "run", other)
    assert examine(tiny("product"))["wrong"].startswith("in fp32 1 of 4 hypotheses differ")


def test_a_head_without_compact_search_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a CPU a softmax has one.
    monkeypatch.setattr(SoftmaxHead, "why_wide", OutputHead.why_wide)
    assert "SoftmaxHead scores the whole vocabulary" in examine(tiny("softmax"))["wrong"]


def test_tables() -> None:
    counts = {"operators": 100.0, "launches": 3.0, "waits": 11.0}
    differ = {"differ": 2, "hypotheses": 640, "best_differ": 1, "sentences": 128,
              "largest_score_difference": 0.01, "mean_score_lost": 0.001}  # fmt: skip
    checks = [
        {
            "name": f"cascade, V = {vocab}", "ok": True, "spec": {"head": "cascade", "vocab": vocab},
            "speed": {"compact": {"tokens_per_second": 2600.0}, "wide": {"tokens_per_second": 1000.0},
                      "softmax": {"tokens_per_second": 900.0}},
            "per_step": {"compact": counts, "wide": counts, "softmax": counts | {"waits": waits}},
            "differences": {"fp16": differ},
        }
        for vocab, waits in ((32_768, 9.0), (262_144, 8.0))
    ]  # fmt: skip
    generated = {"name": "g", "ok": True, "vocab": 32_768,
                 "generate": {"compact": 300.0, "wide": 200.0, "stock": 100.0}}  # fmt: skip
    outcome = Outcome(checks=[*checks, generated, {"name": "failed", "ok": False, "wrong": "x"}])
    show(outcome)
    speeds, steps, differences = (rows for _, _, rows in outcome.tables)
    assert all(len(row) == len(header) for _, header, rows in outcome.tables for row in rows)
    assert speeds[0] == ["cascade", "32,768", "2,600", "1,000", "900", "2.60", "1.3: met"]
    assert speeds[1][-1] == "3: missed"
    assert speeds[2][0] == "cascade, fairseq-generate" and speeds[2][-2] == "1.50"
    assert [row[-1].rpartition(" ")[2] for row in steps] == ["met", "missed"]
    assert differences[0] == ["cascade", "32,768", "fp16", "2 of 640", "1 of 128", "1.0e-02", "1.0e-03"]
