"""scripts/oldest_torch.sh without the tests it runs: what it installs, and that setup.py says the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers import REPO


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files that the script reads, and an installation that only tells what it was asked for."""
    (tmp_path / "scripts").mkdir()
    for name in ("setup.py", "constraints.txt", "scripts/oldest_torch.sh"):
        shutil.copy(REPO / name, tmp_path / name)
    install = tmp_path / "scripts" / "make_venv.sh"
    install.write_text('#!/bin/sh\necho "$VENV $TRITON $1"\ncat "$CONSTRAINTS"\nexit 3\n')
    install.chmod(0o755)
    return tmp_path


def run(checkout: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "VENV"}
    script = checkout / "scripts" / "oldest_torch.sh"
    return subprocess.run([script], env=env, capture_output=True, text=True, timeout=60)


def test_only_what_torch_decides_is_older(checkout: Path) -> None:
    done = run(checkout)
    assert done.returncode == 3 and not done.stderr
    first, *pins = done.stdout.splitlines()
    assert first == ".venv-oldest 3.2.0 test,plot"
    ours = {line for line in (checkout / "constraints.txt").read_text().splitlines() if "==" in line}
    theirs = {line for line in pins if "==" in line}
    assert len(ours) == len(theirs) == len({line.partition("==")[0] for line in theirs})
    assert {line.partition("==")[0] for line in ours - theirs} == {"torch", "torchaudio", "sympy", "numpy"}
    assert "torch==2.6.0" in theirs


def test_it_tests_what_setup_py_allows(checkout: Path) -> None:
    setup = checkout / "setup.py"
    setup.write_text(setup.read_text().replace("torch>=2.6", "torch>=2.7"))
    done = run(checkout)
    assert done.returncode == 1 and not done.stdout
    said = "setup.py allows torch>=2.7 and this script tests torch==2.6.0; change one of them"
    assert done.stderr == f"oldest_torch.sh: error: {said}\n"
