"""scripts/gpu/check.py, run for real on the CPU with tiny sizes, and its machinery."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from scripts.gpu.check import main
from scripts.gpu.forks import in_forks
from scripts.gpu.parts import Check, Outcome, Part, Seen, Settings, run_part
from scripts.gpu.workshop import NotHere
from tests.helpers import REPO, run_command

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
HERE = Settings(torch.device("cpu"), smoke=True, jobs=1)


@needs_triton
@pytest.mark.slow
def test_the_parts_without_commands_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    flags = f"GPU_FLAGS=--smoke --parts a,b,c --json {path}"
    done = run_command(["make", "-s", "gpu-check", f"PYTHON={sys.executable}", flags])
    found = json.loads(path.read_text())
    assert found["smoke"] and found["torch"] == torch.__version__ and found["triton"]
    assert found["commit"] in done.stdout
    assert list(found["parts"]) == ["a", "b", "c"]
    for part in found["parts"].values():
        assert part["checks"] and not part["failed"] and not part["not_reached"]
    values = {check["name"]: check for check in found["parts"]["a"]["checks"]}
    assert values["cascade fp32"]["launches"] > 0 and values["cascade fp32"]["errors"]["nll"] < 1e-5
    assert {"d features", "topk", "log_probs"} <= values["sampling-tied fp32"]["errors"].keys()
    steps = {check["name"]: check for check in found["parts"]["b"]["checks"]}
    assert steps["cascade step"]["waits"] == [] and steps["cascade step"]["operators"] > 0
    times = {check["name"]: check for check in found["parts"]["c"]["checks"]}
    assert {"product", "mixture", "cascade-tied", "sampling"} <= times["V = 41"]["steps"].keys()
    assert "dense" in times["peers, V = 41"]["steps"]
    assert "| cascade |" in done.stdout and "**A training step**" in done.stdout


def a_part(checks: Sequence[Check]) -> Part:
    def show(outcome: Outcome) -> None:
        outcome.tables.append(("Seen", ["name"], [[check["name"]] for check in outcome.checks]))

    return Part("x", "a test", 60, lambda settings: checks, show)


def _right() -> Seen:
    return True, {"number": 1}


def _breaks() -> Seen:
    raise ValueError("no good\nfor a reason")


def _slow() -> Seen:
    time.sleep(30)
    return True, {}


def test_a_failure_does_not_stop_the_others() -> None:
    said: list[str] = []
    checks = [Check("one", _breaks), Check("two", _right), Check("three", lambda: (False, {"wrong": "bad"}))]
    outcome = run_part(a_part(checks), HERE, 60, said.append)
    assert [check["ok"] for check in outcome.checks] == [False, True, False]
    assert outcome.checks[0]["error"] == "ValueError: no good" and outcome.checks[1]["number"] == 1
    assert said == ["  one: ValueError: no good", "  three: bad"]
    assert outcome.tables == [("Seen", ["name"], [["one"], ["two"], ["three"]])] and not outcome.missed


def test_what_there_is_no_time_for_is_named_and_is_no_failure() -> None:
    checks = [Check("one", _right), Check("two", _slow), Check("three", _right)]
    outcome = run_part(a_part(checks), HERE, 0.01, lambda line: None)
    assert [check["name"] for check in outcome.checks] == ["one"]
    assert outcome.missed == ["two", "three"] and not outcome.failed and outcome.seconds < 10


def test_preparations_that_break_are_a_failure() -> None:
    def checks(settings: Settings) -> Sequence[Check]:
        raise RuntimeError("out of something")

    part = Part("x", "a test", 60, checks, lambda outcome: None)
    outcome = run_part(part, HERE, 60, lambda line: None)
    assert [check["error"] for check in outcome.failed] == ["RuntimeError: out of something"]


def _lacks() -> Seen:
    raise NotHere("no such thing: install it")


def test_what_is_not_installed_is_told_and_is_no_failure() -> None:
    outcome = run_part(a_part([Check("one", _lacks), Check("two", _right)]), HERE, 60, lambda line: None)
    assert outcome.absent == ["one: no such thing: install it"]
    assert [check["name"] for check in outcome.checks] == ["two"] and not outcome.missed

    def checks(settings: Settings) -> Sequence[Check]:
        raise NotHere("no such thing: install it")

    outcome = run_part(Part("x", "a test", 60, checks, lambda outcome: None), HERE, 60, lambda line: None)
    assert outcome.absent == ["no such thing: install it"]
    assert not outcome.checks and not outcome.missed and not outcome.failed


@pytest.mark.slow
def test_forks_survive_what_dies() -> None:
    works = [lambda: 1, lambda: os._exit(3), lambda: 1 / 0, lambda: 4]
    found = dict(in_forks(works, 2))
    assert found[0] == 1 and found[3] == 4
    assert str(found[1]) == "its process died (exit code 3)"
    assert str(found[2]) == "ZeroDivisionError: division by zero"
    begin = time.monotonic()
    assert dict(in_forks([lambda: 1, lambda: time.sleep(30)], 2, begin + 1)) == {0: 1}
    assert time.monotonic() - begin < 10


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--parts", "a,z"], "--parts takes some of a (values), b (launches"),
        (["--seconds", "a=soon"], "--seconds takes limits such as a=60,c=120; got 'a=soon'"),
        (["--seconds", "z=3"], "--seconds takes limits such as"),
        (["--json", "nowhere/found.json"], "give a file in a folder that exists"),
        (["--smoke", "--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_bad_input(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    assert message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu() -> None:
    script = REPO / "scripts" / "gpu" / "check.py"
    done = run_command(["python", str(script)], check=False)
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.count("\n") == 1 and "finds no CUDA GPU here; --smoke tries" in done.stderr
