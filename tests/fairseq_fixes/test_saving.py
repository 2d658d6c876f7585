"""Files that are there whole or not at all. Trainings on a full disk are in test_faults.py."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import saving


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saving, "WAIT", 0.0)


class Failing:
    """Writes half of a file and fails, so many times; then writes all of it."""

    def __init__(self, times: int) -> None:
        self.times = times

    def __call__(self, path: Path) -> None:
        self.times -= 1
        if self.times >= 0:
            path.write_bytes(b"ha")
            raise OSError(errno.ENOSPC, "No space left on device")
        path.write_bytes(b"half")


def test_what_fails_in_passing_is_done_once_more(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint_last.pt"
    saving.write_whole(str(target), Failing(saving.ATTEMPTS - 1))
    assert target.read_bytes() == b"half"
    assert list(tmp_path.iterdir()) == [target]


def test_what_fails_leaves_what_was_there(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint_last.pt"
    target.write_bytes(b"good")
    with pytest.raises(
        MHEError, match=r"checkpoint_last\.pt could not be written \(No space left on device; "
    ):
        saving.write_whole(str(target), Failing(saving.ATTEMPTS))
    assert target.read_bytes() == b"good"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(MHEError, match="is not there any more"):
        saving.write_whole(str(tmp_path / "gone" / "checkpoint_last.pt"), Failing(0))


def test_fairseq_saves_and_copies_this_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = tmp_path / "checkpoint1.pt", tmp_path / "checkpoint_last.pt"
    checkpoint_utils.torch_persistent_save({"a": torch.arange(3)}, str(one))
    assert torch.load(one)["a"].tolist() == [0, 1, 2]
    other.write_bytes(b"good")
    with monkeypatch.context() as patch:
        patch.setattr(saving.shutil, "copyfile", lambda source, target: Failing(1)(target))
        with pytest.raises(MHEError, match="could not be written"):
            PathManager.copy(str(one), str(other), overwrite=True)
    assert other.read_bytes() == b"good"
    assert PathManager.copy(str(one), str(other), overwrite=True)
    assert other.read_bytes() == one.read_bytes()
    assert sorted(tmp_path.iterdir()) == [one, other]
