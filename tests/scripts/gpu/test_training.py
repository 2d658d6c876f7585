"""Part (d): what is run in which order, and what its tables make of it."""

from __future__ import annotations

from typing import Any

import torch

from scripts.gpu.parts import Outcome, Settings
from scripts.gpu.train_flags import LAYERS
from scripts.gpu.training import PART, Run, runs, show

ON_A_GPU = Settings(torch.device("cuda"), smoke=False, jobs=1)


def ran(run: Run, words: float | None, peak: float | None) -> dict[str, Any]:
    """A check as part (d) makes it."""
    return {
        "name": run.name, "ok": True, "layer": run.layer, "vocab": run.vocab, "precision": run.precision,
        "attention": run.attention, "words_per_second": words, "updates_per_second": 9.5, "peak_gib": peak,
    }  # fmt: skip


def tables(*checks: dict[str, Any]) -> dict[str, dict[str, dict[str, str]]]:
    """Title -> layer -> column -> cell."""
    outcome = Outcome(checks=list(checks))
    show(outcome)
    return {
        title: {row[0]: dict(zip(header, row, strict=True)) for row in rows}
        for title, header, rows in outcome.tables
    }


def test_what_the_targets_need_comes_first() -> None:
    order = runs(ON_A_GPU)
    assert len({run.name for run in order}) == len(order)
    first = {(run.layer, run.vocab) for run in order[:6]}
    assert first == {(x, v) for x in ("stock", "cascade-tied", "sampling") for v in (32_768, 262_144)}
    assert all(run.precision == "fp16" and run.attention == "0" for run in order[:6])
    assert {run.layer for run in order} == set(LAYERS)
    assert {run.precision for run in order} == {"fp16", "bf16"} and {run.attention for run in order} == {
        "0",
        "1",
    }
    # Whatever is compared has its own stock run in the same place.
    seen = {(run.layer, run.vocab, run.precision, run.attention) for run in order}
    assert all((LAYERS[x].against, *place) in seen for x, *place in seen)


def test_ratios_and_targets() -> None:
    found = tables(
        ran(Run("stock", 32_768, "fp16", "0"), 80_000, 6.0),
        ran(Run("stock", 32_768, "fp16", "0", 2), 90_000, 6.2),
        ran(Run("cascade-tied", 32_768, "fp16", "0"), 93_500, 3.0),
        ran(Run("sampling", 32_768, "fp16", "0"), 86_700, 3.5),
        ran(Run("product", 32_768, "fp16", "0"), 100, 2.5),
    )
    rows = found["fairseq-train, V = 32,768, fp16, without cuDNN attention"]
    assert rows["stock"]["words/s"] == "85,000" and rows["stock"]["runs"] == "2"
    assert rows["stock"]["times stock"] == "-" and rows["stock"]["targets"] == "86,400 words/s: missed"
    cascade = rows["cascade-tied"]
    assert (
        cascade["times stock"] == "1.10" and cascade["peak GiB"] == "3.0" and cascade["below stock"] == "3.1"
    )
    assert cascade["targets"] == "1.1 times stock: met; 86,400 words/s: met"
    assert rows["sampling"]["targets"] == "1.1 times stock: missed; 86,400 words/s: met"
    assert rows["product"]["targets"] == "86,400 words/s: missed"


def test_memory_has_a_target_at_the_larger_vocabulary() -> None:
    found = tables(
        ran(Run("stock, not tied", 262_144, "fp16", "0"), 50_000, 32.0),
        ran(Run("cascade", 262_144, "fp16", "0"), 80_000, 11.0),
        ran(Run("cascade-tied", 262_144, "fp16", "0"), 80_000, 11.0),
    )
    rows = found["fairseq-train, V = 262,144, fp16, without cuDNN attention"]
    assert rows["cascade"]["targets"] == "1.5 times stock: met; 20 GiB below stock: met"
    # Its own stock was not reached.
    assert rows["cascade-tied"]["times stock"] == "-" and rows["cascade-tied"]["targets"] == "-"


def test_other_types_and_attention_have_tables_of_their_own_without_targets() -> None:
    found = tables(
        ran(Run("stock", 32_768, "fp16", "1"), 28_000, 6.0),
        ran(Run("stock", 32_768, "bf16", "0"), 88_000, 6.0),
        ran(Run("cascade-tied", 32_768, "bf16", "0"), 99_000, None),
        {"name": "failed", "ok": False, "error": "x"},
    )
    assert len(found) == 2
    assert found["fairseq-train, V = 32,768, fp16, with cuDNN attention"]["stock"]["targets"] == "-"
    row = found["fairseq-train, V = 32,768, bf16, without cuDNN attention"]["cascade-tied"]
    assert row["times stock"] == "1.12" and row["targets"] == "-" and row["below stock"] == "-"


def test_nothing_seen_makes_no_table() -> None:
    outcome = Outcome()
    PART.show(outcome)
    assert outcome.tables == []
