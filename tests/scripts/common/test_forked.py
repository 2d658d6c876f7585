"""A forked command gets arguments, folder, environment and files of its own, and ends as any process ends."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from tests.helpers import REPO, run_command

#: Forks the command that it is given as JSON, with this process's files, and prints how that ended.
FORK = """
import json, os, sys
from scripts.common import forked
line, cwd = json.loads(sys.argv[1])
if "imports" in sys.argv:
    forked.import_most()
files = [os.open(os.devnull, os.O_RDONLY), os.dup(1), os.dup(2)]
print("status", forked.status(forked.start(line, cwd, {"ONE": "1"}, files)))
"""

#: How it ends, by its argument.
TOY = """
import atexit, os, signal, sys
atexit.register(print, "at the end")
print(__name__, sys.argv, sys.path[0], os.getcwd(), dict(os.environ).get("ONE"), "HOME" in os.environ)
print("read", repr(sys.stdin.read()))
how = sys.argv[1]
if how == "raise":
    raise ValueError("told to")
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit({"well": None, "text": "a sentence", "three": 3}[how])
"""


@pytest.mark.parametrize(
    ("how", "status", "said"),
    [
        ("well", 0, ""),
        ("three", 3, ""),
        ("text", 1, "a sentence"),
        ("raise", 1, "ValueError: told to"),
        ("kill", -9, ""),
    ],
)
@pytest.mark.parametrize("as_module", [False, True], ids=["script", "module"])
def test_a_forked_command(how: str, status: int, said: str, as_module: bool, tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(TOY)
    first = ["-m", "toy"] if as_module else [str(tmp_path / "toy.py")]
    request = json.dumps([[*first, how], str(tmp_path)])
    done = run_command([sys.executable, "-c", FORK, request], cwd=REPO)
    printed = done.stdout.splitlines()
    assert printed[-1] == f"status {status}" and said in done.stderr
    if how != "kill":
        script = str(tmp_path / "toy.py")
        assert printed[0] == f"__main__ {[script, how]} {tmp_path} {tmp_path} 1 False"
        assert printed[1:3] == ["read ''", "at the end"]


def test_paths_are_given_up_where_the_command_has_none(tmp_path: Path) -> None:
    (tmp_path / "elsewhere.py").write_text("")
    for environment, found in (('{"ONE": "1"}', False), ("dict(os.environ)", True)):
        code = FORK.replace('{"ONE": "1"}', environment)
        line = ["-c", "import importlib.util; print(importlib.util.find_spec('elsewhere') is not None)"]
        done = run_command(
            [sys.executable, "-c", code, json.dumps([line, str(REPO)])],
            env={"PYTHONPATH": f"{REPO}{os.pathsep}{tmp_path}"},
        )
        assert done.stdout.splitlines() == [str(found), "status 0"], done.stderr


#: Logs before and after fairseq is imported, which sets logging up; and warns.
LOGS = """
import logging, sys, warnings
logging.getLogger("x").info("before")
if "own" in sys.argv:
    logging.basicConfig(level="WARNING")
import fairseq.trainer
logging.getLogger("x").info("after")
warnings.warn("watch out", UserWarning)
print(__name__, sys.argv)
"""


@pytest.mark.slow
def test_logging_warnings_and_code(tmp_path: Path) -> None:
    """As in a process that imports fairseq itself."""
    for own in ([], ["own"]):
        request = json.dumps([["-c", LOGS, *own], str(tmp_path)])
        done = run_command([sys.executable, "-c", FORK, request, "imports"], cwd=REPO)
        assert done.stdout.splitlines() == [f"__main__ {['-c', *own]}", "status 0"]
        assert "x:before" not in done.stderr and ("INFO:x:after" in done.stderr) == (not own)
        # FORK's environment has no PYTHONWARNINGS; this process's has.
        assert "UserWarning: watch out" in done.stderr


#: A process that is spawned sends back an object of a class of the script.
SPAWNS = """
import multiprocessing
class Answer:
    pass
def answer(line):
    line.send(Answer())
if __name__ == "__main__":
    ours, theirs = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=answer, args=(theirs,))
    process.start()
    print(type(ours.recv()) is Answer)
    process.join()
"""


def test_spawned_processes(tmp_path: Path) -> None:
    (tmp_path / "spawns.py").write_text(SPAWNS)
    request = json.dumps([[str(tmp_path / "spawns.py")], str(tmp_path)])
    done = run_command([sys.executable, "-c", "import multiprocessing\n" + FORK, request], cwd=REPO)
    assert done.stdout.splitlines() == ["True", "status 0"], done.stderr
