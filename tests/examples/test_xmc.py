"""examples/classification/xmc: from documents with labels to measures, at --scale tiny."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.examples.recipes import commands, refused
from tests.helpers import REPO, run_command
from tests.labelled import SIZES, write_documents

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

RECIPE = REPO / "examples" / "classification" / "xmc" / "run.sh"


def run_recipe(out: Path, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    line = [str(RECIPE), "--out", str(out), "--scale", "tiny", "--cpu", *more]
    return run_command(line, check=check, merged=check)


def test_from_documents_to_measures(tmp_path: Path) -> None:
    write_documents(tmp_path / "source")
    line = ["--source", str(tmp_path / "source"), "--updates", "30"]
    done = run_recipe(tmp_path / "out", *line).stdout
    assert commands(done) == [
        *("python", "fairseq-preprocess", "fairseq-preprocess", "mhe", "fairseq-train", "mhe", "mv")
    ]
    assert re.search(
        r"^xmc, cascade: test set of 39 documents with labels: P@1 \d+\.\d+, P@3", done, re.MULTILINE
    )
    assert len((tmp_path / "out" / "test.labels").read_text().splitlines()) == SIZES["test"]
    assert list((tmp_path / "out" / "tensorboard").rglob("events*"))
    again = run_recipe(tmp_path / "out", *line).stdout
    for step in ("prepare", "train", "evaluate"):
        assert f"{step}: done before, skipped" in again
    assert again.splitlines()[-1] == done.splitlines()[-1]
    other = run_recipe(tmp_path / "out", *line, "--by", "random", check=False)
    refused(other, "was started with other settings")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([], "--source is missing"),
        (["--source", "nowhere"], "there is no folder nowhere"),
        (["--source", "docs", "--by", "size"], "--by is cluster, frequency or random, not 'size'"),
        (
            ["--source", "docs", "--head", "product"],
            "--head is one of cascade softmax sampling, not 'product'",
        ),
        (["--source", "docs", "--by"], "--by needs a value"),
        (["--labels", "x"], "there is no argument '--labels'"),
    ],
)
def test_bad_arguments(tmp_path: Path, more: list[str], said: str) -> None:
    refused(run_recipe(tmp_path / "out", *more, check=False), said)
    assert not (tmp_path / "out").exists()


def test_the_comparison_refuses_bad_arguments(tmp_path: Path) -> None:
    line = ["python", str(RECIPE.with_name("compare.py")), "--out", str(tmp_path / "out")]
    done = run_command([*line, "--source", str(tmp_path), "--seeds", "one"], check=False)
    refused(done, "whole numbers such as 1,2,3; got one", script="compare.py")
    done = run_command([*line, "--source", str(tmp_path / "none")], check=False)
    refused(done, "there is no folder", script="compare.py")
    done = run_command([*line, "--source", str(tmp_path), "--scale", "tiny", "--cpu"], check=False)
    refused(done, "a run failed, see", "there is no train set", script="compare.py")
