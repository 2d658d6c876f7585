"""Importing the package: with a working fairseq, a broken one, and none; and its hooks."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import checkpoints, excepthook
from tests.helpers import command_env, run_command


@pytest.mark.slow
def test_without_fairseq_heads_still_work() -> None:
    code = (
        "import sys; sys.modules['fairseq'] = None\n"
        "import torch\n"
        "from mhe_fairseq.coding import Codebook\n"
        "from mhe_fairseq.heads import ProductHead\n"
        "print(ProductHead(4, Codebook((2, 3))).log_probs(torch.zeros(1, 4)).shape)"
    )
    assert "torch.Size([1, 6])" in run_command([sys.executable, "-c", code]).stdout


def test_heads_and_coding_never_import_fairseq() -> None:
    code = (
        "import sys; sys.modules['fairseq'] = None\n"
        "import mhe_fairseq.heads, mhe_fairseq.coding.assign\n"
        "print([m for m in sys.modules if m.startswith('fairseq.')])"
    )
    assert run_command([sys.executable, "-c", code]).stdout.strip() == "[]"


def test_a_broken_fairseq_is_named_with_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "fairseq").mkdir()
    (tmp_path / "fairseq" / "__init__.py").write_text("raise ValueError('mutable default <class ...>')")
    env = command_env()
    env["PYTHONPATH"] = f"{tmp_path}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, "-c", "import mhe_fairseq"], env=env, capture_output=True, text=True
    )
    assert done.returncode != 0
    said = done.stderr.splitlines()[-1]
    assert "mutable default" in said and "pip install ve-fairseq==0.12.3" in said


def test_what_is_allowed_in_checkpoints_is_a_namespace_and_whole_numbers(tmp_path: Path) -> None:
    names = [f"{each.__module__}.{each.__name__}" for each in checkpoints.ALLOWED_CLASSES]
    assert names == [
        "argparse.Namespace",
        "numpy._core.multiarray._reconstruct",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.dtypes.Int64DType",
    ]
    assert set(checkpoints.ALLOWED_CLASSES) <= set(torch.serialization.get_safe_globals())
    state = {"cfg": argparse.Namespace(a=1), "counts": np.arange(4)}
    torch.save(state, tmp_path / "good.pt")
    loaded = torch.load(tmp_path / "good.pt", weights_only=True)
    assert loaded["cfg"] == state["cfg"] and loaded["counts"].tolist() == [0, 1, 2, 3]


def test_our_errors_are_found_below_fairseqs() -> None:
    try:
        try:
            raise MHEError("the sentence")
        except MHEError:
            raise Exception("Cannot load model parameters") from None  # `from None` keeps the context
    except Exception as error:
        assert str(excepthook._ours(error)) == "the sentence"
    assert excepthook._ours(ValueError("not ours")) is None


def test_errors_are_one_sentence_unless_a_traceback_is_asked_for() -> None:
    code = "import mhe_fairseq\nraise mhe_fairseq.MHEError('what was wrong')"
    done = run_command(["python", "-c", code], check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "mhe_fairseq: error: what was wrong"
    assert "Traceback" not in done.stderr
    done = run_command(["python", "-c", code], check=False, env={"MHE_TRACEBACK": "1"})
    assert "Traceback" in done.stderr


@pytest.mark.slow
def test_an_error_of_a_spawned_rank_is_its_sentence(tmp_path: Path) -> None:
    """fairseq spawns a rank for each GPU; what it raises arrives as text."""
    (tmp_path / "spawned.py").write_text(
        "import mhe_fairseq, torch\n"
        "def rank(number):\n"
        "    raise mhe_fairseq.MHEError('what was wrong')\n"
        "if __name__ == '__main__':\n"
        "    torch.multiprocessing.spawn(rank, nprocs=1)\n"
    )
    done = run_command([sys.executable, str(tmp_path / "spawned.py")], check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "mhe_fairseq: error: what was wrong"
    assert "Traceback" not in done.stderr


def test_a_missing_checkpoint_stays_fairseqs_error() -> None:
    with pytest.raises((FileNotFoundError, OSError)):
        checkpoints.checkpoint_utils.load_checkpoint_to_cpu("/nowhere/checkpoint.pt")
