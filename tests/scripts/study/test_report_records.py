"""scripts/study/report_records.py: tables of the records beside a page, and pages that say just that."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPO, run_command

SCRIPT = REPO / "scripts" / "study" / "report_records.py"
RECORDS = REPO / "docs" / "results"
PAGE = """# Page
<!-- record: speed -->
old
<!-- end -->
Prose.
<!-- study: scores -->
kept
<!-- end -->
"""
RECORD: dict[str, Any] = {
    "about": "speed",
    "data": "made up",
    "setup": "d = 8",
    "commands": ["mhe bench train"],
    "seeds": "1",
    "machine": "a CPU",
    "versions": {"torch": "2.13.0"},
    "columns": [
        {"key": "head", "title": "head"},
        {"key": "ms", "title": "time", "format": "{:,} ms"},
        {"key": "bits", "title": "bits", "format": "{:.2f}", "left": True},
    ],
    "rows": [
        {"head": "softmax", "ms": 1500, "bits": {"500": 8.5, "1,000": 7.0}},
        {"head": "cascade", "ms": None, "bits": [7.0, 0.25]},
        {"head": "product", "ms": "not reached", "bits": 6},
    ],
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "speed.json").write_text(json.dumps(RECORD))
    (tmp_path / "page.md").write_text(PAGE)
    return tmp_path


def report(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    line = ["python", str(SCRIPT), str(folder / "page.md"), "--records", str(folder), *words]
    return run_command(line, check=check)


def test_a_page_is_filled_and_checked(folder: Path) -> None:
    page = folder / "page.md"
    assert "is not what" in report(folder, "--check", check=False).stderr
    assert page.read_text() == PAGE, "--check writes nothing"
    report(folder)
    made = page.read_text()
    assert made.splitlines() == [
        "# Page",
        "<!-- record: speed -->",
        "",
        "| head | time | bits |",
        "| --- | ---: | --- |",
        "| softmax | 1,500 ms | 500: 8.50, 1,000: 7.00 |",
        "| cascade |  | 7.00 +-0.25 |",
        "| product | not reached | 6.00 |",
        "",
        "<!-- end -->",
        "Prose.",
        "<!-- study: scores -->",
        "kept",
        "<!-- end -->",
    ]
    assert report(folder, "--check").returncode == 0


def spoiled(name: str, value: Any) -> str:
    return json.dumps({key: each for key, each in (RECORD | {name: value}).items() if each is not None})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "page", "said"),
    [
        (None, None, "there is no record"),
        ("{", None, "is not JSON"),
        (spoiled("commands", None), None, "needs 'commands', a list; it has None"),
        (spoiled("seeds", 1), None, "needs 'seeds', a str; it has 1"),
        (spoiled("rows", [{"head": "softmax", "ms": 1}]), None, "differ in: bits"),
        (json.dumps(RECORD), "# Page\n", "has no block"),
        (json.dumps(RECORD), "", "there is no page"),
    ],
)
def test_bad_records_are_one_sentence(folder: Path, record: str | None, page: str | None, said: str) -> None:
    (folder / "speed.json").unlink()
    if record is not None:
        (folder / "speed.json").write_text(record)
    if page is not None:
        (folder / "page.md").unlink()
        if page:
            (folder / "page.md").write_text(page)
    done = report(folder, check=False)
    assert done.returncode == 1 and said in done.stderr
    assert done.stderr.startswith("report_records.py: error: ") and done.stderr.count("\n") == 1


def test_the_pages_say_what_was_recorded() -> None:
    for page in ([], [str(REPO / "README.md")]):
        done = run_command(["python", str(SCRIPT), *page, "--check"])
        assert done.stderr == ""
    shown = re.findall(r"<!-- record: (\S+) -->", (REPO / "docs" / "results.md").read_text(encoding="utf-8"))
    assert sorted(shown) == sorted(path.stem for path in RECORDS.glob("*.json")), "every record has a table"


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_scripts_named_in_a_records_commands_are_there(path: Path) -> None:
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["commands"] or "were not kept" in record["setup"], "commands, or why there are none"
    for command in record["commands"]:
        for script in re.findall(r"\bscripts/\S+\.py", command):
            assert (REPO / script).is_file(), f"{path.name}: {command}"
