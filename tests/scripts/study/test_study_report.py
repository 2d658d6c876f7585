"""scripts/study/study_report.py: tables of what was recorded, and a page that says just that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from scripts.study.study_report import Records, after, filled, read_records, spread
from tests.helpers import REPO, run_command

PAGE = """# Results
<!-- small: scores -->
<!-- end -->
Prose.
<!-- small: time of cascade -->
old
<!-- end -->
<!-- small: summary -->
<!-- end -->
<!-- small: commands -->
<!-- end -->
<!-- other: scores -->
kept
<!-- end -->
"""


def run(variant: str, seed: int, bleu: float, p: float | None = None, **more: Any) -> dict[str, Any]:
    test = {"bleu": bleu, "chrf": 2 * bleu, "brevity": 0.9, "length": 0.95, "signatures": {}}
    return {
        "variant": variant,
        "seed": seed,
        "updates": 400,
        "commands": [f"fairseq-train --seed {seed}", "fairseq-generate"],
        "validation": [[200, 6.0], [400, 5.0]],
        "test": test,
        "earlier": [[100, 2.0], [200, 6.0]] if p is None else [],
        "against": None if p is None else {"BLEU": p, "chrF2": p},
        "versions": {"torch": "2.13.0"},
        "machine": "a CPU",
    } | more


def times(variant: str, update: float, search: float) -> dict[str, Any]:
    return {
        "variant": variant,
        "update_seconds": [update, update / 2, 2 * update],
        "peak_bytes": 2**30,
        "parameters": 1234,
        "output_parameters": 12,
        "search_seconds": [search],
        "sentences": 10,
        "machine": "a CPU",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "small"
    made.mkdir()
    runs = [run("cascade", 1, 10.5, 0.2), run("softmax", 1, 10.0), run("cascade", 2, 10.0, 0.01)]
    runs += [run("softmax", 2, 11.0, earlier=[]), run("product", 1, 8.0, 0.001)]
    (made / "runs.jsonl").write_text("".join(json.dumps(each) + "\n" for each in runs))
    cost = [times("softmax", 1.0, 6.0), times("cascade", 0.25, 2.0), times("product", 0.2, 1.0)]
    (made / "times.jsonl").write_text("".join(json.dumps(each) + "\n" for each in cost))
    (tmp_path / "page.md").write_text(PAGE)
    return made


def report(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    script = str(REPO / "scripts" / "study" / "study_report.py")
    page = str(folder.parent / "page.md")
    return run_command(["python", script, str(folder), "--page", page, *words], check=check)


@pytest.mark.slow
def test_a_page_is_filled_and_checked(folder: Path) -> None:
    page = folder.parent / "page.md"
    assert "is not what" in report(folder, "--check", check=False).stderr
    assert page.read_text() == PAGE, "--check writes nothing"
    plot = folder.parent / "plot.png"
    report(folder, "--plot", str(plot), "--variants", "cascade")
    assert plot.read_bytes().startswith(b"\x89PNG")
    made = page.read_text()
    assert report(folder, "--check").returncode == 0
    report(folder)
    assert page.read_text() == made, "the second time changes nothing"
    for line in (
        "| softmax | 1, 2 | 10.50 +-0.50 |  |  | 21.00 +-1.00 | 0.950 | 5.000 +-0.000 |",
        # Against the same seeds: +0.5 and -1.0.
        "| cascade | 1, 2 | 10.25 +-0.25 | -0.25 | 0.200, 0.010 | 20.50 +-0.50 | 0.950 | 5.000 +-0.000 |",
        "| product | 1 | 8.00 | -2.00 | 0.001 | 16.00 | 0.950 | 5.000 |",
        # 400 updates of 0.25 s are 100 of the softmax's: its BLEU was 2 there, with the seed that tells.
        "| cascade | 250 ms | 4.00x | 1,024 MiB | 1,234 | 12 | 2.0 s | 3.00x | 10.25 | 2.00 |",
        "| softmax | 1, 2 | 10.50 +-0.50 |  | 1.00x | 1.00x | 1,024 MiB |",
        "| cascade | 1, 2 | 10.25 +-0.25 | -0.25 | 4.00x | 3.00x | 1,024 MiB |",
        "**cascade, seed 2**, 400 updates: BLEU 10.00, chrF2 20.00. torch 2.13.0; a CPU.",
        "fairseq-train --seed 2",
    ):
        assert line in made.splitlines()
    assert made.count("| product |") == 2, "the table of times is of the cascade only"
    assert "old" not in made and "Prose." in made and "kept" in made


def test_without_a_page_the_tables_are_printed(folder: Path) -> None:
    words = ["python", str(REPO / "scripts" / "study" / "study_report.py"), str(folder)]
    printed = run_command(words).stdout
    assert "| product | 1 | 8.00 | -2.00 | 0.001 | 16.00 | 0.950 | 5.000 |" in printed.splitlines()
    assert "| product | 200 ms | 5.00x |" in printed
    (folder / "times.jsonl").unlink()
    assert "| update |" not in run_command(words).stdout
    done = run_command([*words, "--check"], check=False)
    assert done.returncode == 1 and "give it with --page" in done.stderr


def test_commands_of_some_variants_are_printed(folder: Path) -> None:
    words = ["python", str(REPO / "scripts" / "study" / "study_report.py"), str(folder)]
    printed = run_command([*words, "--commands", "cascade"]).stdout
    assert "**cascade, seed 2**" in printed and "fairseq-train --seed 2" in printed
    assert "**softmax" not in printed, "not the baseline's, which was not asked for"
    done = run_command([*words, "--commands", "none"], check=False)
    assert done.returncode == 1 and "none not among the recorded variants" in done.stderr
    assert "leave out one of" in report(folder, "--commands", "cascade", check=False).stderr


def test_scores_between_validations_lie_on_straight_lines() -> None:
    one = run("softmax", 1, 10.0)
    given = [after(one, update) for update in (0, 50, 100, 150, 300, 400, 999)]
    assert given == [0.0, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_spread_is_half_the_range() -> None:
    assert spread([1.0, 2.0, 4.0]) == "2.33 +-1.50" and spread([1.234], 1) == "1.2"


def test_the_baseline_is_the_one_that_is_compared_with_none(folder: Path) -> None:
    records = read_records(folder)
    assert records.baseline == "softmax" and list(records.runs) == ["softmax", "cascade", "product"]
    assert [each["seed"] for each in records.runs["cascade"]] == [1, 2]
    assert records.update("cascade") == 0.25


def test_without_times_there_is_no_row_of_them(folder: Path) -> None:
    (folder / "times.jsonl").unlink()
    records = read_records(folder)
    assert records == Records(records.runs, {})
    assert "| cascade | 250 ms" not in filled(PAGE, "small", records)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / "runs.jsonl").unlink(), "there is no"),
        (lambda folder: (folder / "runs.jsonl").write_text('{"variant"'), "line 1 of"),
        (lambda folder: (folder / "runs.jsonl").write_text(""), "has no run without a comparison"),
        (lambda folder: (folder.parent / "page.md").unlink(), "there is no page"),
        (
            lambda folder: (folder.parent / "page.md").write_text("<!-- small: score -->\n<!-- end -->\n"),
            "there is no table score; there are scores, time, summary, commands",
        ),
        (
            lambda folder: (folder.parent / "page.md").write_text(PAGE.replace("of cascade", "of none")),
            "none not among the recorded variants softmax, cascade, product",
        ),
    ],
)
def test_bad_records_are_one_sentence(folder: Path, spoil: Any, said: str) -> None:
    spoil(folder)
    done = report(folder, check=False)
    assert done.returncode == 1 and done.stderr.startswith("study_report.py: error: ") and said in done.stderr


def test_the_results_page_says_what_was_recorded() -> None:
    script = REPO / "scripts" / "study" / "study_report.py"
    records, page = REPO / "docs" / "results" / "translation", REPO / "docs" / "results.md"
    done = run_command(["python", str(script), str(records), "--page", str(page), "--check"])
    assert done.stderr == "" and "<!-- translation: " in page.read_text()
