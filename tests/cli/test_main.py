"""The `mhe` command itself."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from mhe_fairseq.cli.main import COMMANDS, main
from mhe_fairseq.version import __version__
from tests.helpers import REPO, command_env, run_command

MHE = ["python", "-m", "mhe_fairseq.cli.main"]


def test_it_runs_as_a_command() -> None:
    done = run_command([*MHE, "--help"])
    for name in COMMANDS:
        assert re.search(rf"^    {name}\s", done.stdout, re.MULTILINE)
    assert run_command([*MHE, "--version"]).stdout == f"mhe_fairseq {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert f"usage: mhe {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "arguments are required: COMMAND (`mhe --help` shows what there is)"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["plan", "--dim", "many"], "argument --dim: invalid int value: 'many' (`mhe plan --help`"),
        (["assign"], "arguments are required: --data, -o/--output"),
        (["assign", "--data", "x", "-o", "y", "--by", "luck"], "--by: invalid choice: 'luck'"),
        (["plan", "--dict", "there is none", "--dim", "4"], "there is no dictionary there is none"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("mhe: ") and printed.err.count("\n") == 1
    assert message in printed.err


def test_exit_status_and_stderr_of_the_process() -> None:
    done = run_command([*MHE, "plan", "--dict", "none.txt", "--dim", "4"], check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "mhe: there is no dictionary none.txt; fairseq-preprocess writes dict.LANG.txt (or dict.txt)"
    )
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_reader_that_leaves_is_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "dict.txt"
    path.write_text("".join(f"w{i} {i}\n" for i in range(1, 60)))
    shell = f"{sys.executable} -m mhe_fairseq.cli.main plan --dict {path} --dim 4 --json | true"
    done = subprocess.run(shell, shell=True, cwd=REPO, env=command_env(), capture_output=True, text=True)
    assert "Traceback" not in done.stderr
