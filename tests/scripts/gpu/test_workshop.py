"""Commands run in processes forked from one that has fairseq, or started anew; and what becomes of them."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from scripts.gpu.parts import OutOfTime, _time_limit
from scripts.gpu.workshop import NotHere, Ran, Workshop

pytestmark = pytest.mark.slow

#: A command that tells what it was given, and ends as it is told to.
TOY = """
import os, sys, time
print("arguments", sys.argv[1:], "set", os.environ.get("MHE_KERNELS"), "here", os.getcwd())
print("read", repr(sys.stdin.read()))
print("has fairseq", "fairseq.trainer" in sys.modules, "main", __name__)
if "fail" in sys.argv:
    raise ValueError("it was told to")
if "wait" in sys.argv:
    open("pid", "w").write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
# Without a GPU the process forked to try one fails, and commands are started anew.
@pytest.mark.parametrize("is_cuda", [False, True], ids=["forked", "started"])
def test_commands(is_cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # A user's own switch is none of the commands'.
    monkeypatch.setenv("MHE_KERNELS", "1")
    with Workshop() as shop:
        folder = shop.folder
        (folder / "toy.py").write_text(TOY)
        shop.open(is_cuda)
        assert shop.way == ("started anew" if is_cuda else "forked")
        ran = shop.run("toy", ["a", "b c"])
        assert ran.status == 0 and ran.trouble == ""
        assert f"arguments ['a', 'b c'] set None here {folder}" in ran.said and "read ''" in ran.said
        assert f"has fairseq {not is_cuda} main __main__" in ran.said
        assert "set 0" in shop.run("toy", [], {"MHE_KERNELS": "0"}).said
        assert "set None" in shop.run("toy", []).said
        failed = shop.run("toy", ["fail"])
        assert failed.status == 1 and failed.trouble == "exit status 1: ValueError: it was told to"
    assert not folder.exists()


def test_a_command_that_is_cut_off_ends_and_the_next_one_runs() -> None:
    with Workshop() as shop:
        (shop.folder / "toy.py").write_text(TOY)
        shop.open(False)
        with pytest.raises(OutOfTime), _time_limit(2):
            shop.run("toy", ["wait"])
        pid = int((shop.folder / "pid").read_text())
        end = time.monotonic() + 10
        while _runs(pid) and time.monotonic() < end:
            time.sleep(0.05)
        assert not _runs(pid)
        shop.open(False)
        assert shop.run("toy", []).status == 0


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_without_fairseq(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = "raise ModuleNotFoundError('No module named fairseq', name='fairseq')"
    (tmp_path / "fairseq.py").write_text(absent)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    with (
        Workshop() as shop,
        pytest.raises(NotHere, match="^fairseq is not installed: pip install ve-fairseq"),
    ):
        shop.open(False)


def test_a_fairseq_that_breaks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fairseq.py").write_text("raise ValueError('mutable default\\nfor a reason')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    told = r"^fairseq cannot be imported \(ValueError: mutable default\): pip install ve-fairseq"
    with Workshop() as shop, pytest.raises(NotHere, match=told):
        shop.open(False)


def test_what_is_made_once() -> None:
    with Workshop() as shop:
        made: list[int] = []
        assert shop.once("a", lambda: made.append(1) or 7) == 7  # type: ignore[func-returns-value]
        assert shop.once("a", lambda: 8) == 7 and made == [1]
        assert shop.once("b", lambda: 8) == 8


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("one\nmhe_fairseq: error: no good\nnanobind: leaked 4\n - x\n", "mhe_fairseq: error: no good"),
        (
            "Traceback\n  raise E\ntorch.OutOfMemoryError: CUDA out of memory\n",
            "torch.OutOfMemoryError: CUDA",
        ),
        ("one\ntwo\n\n", "two"),
        ("", "it said nothing"),
    ],
)
def test_what_went_wrong(said: str, told: str) -> None:
    assert Ran(3, said, 1.0).trouble.startswith(f"exit status 3: {told}")
