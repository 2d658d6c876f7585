"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mhe_fairseq.cli.output import check_output, write_checkpoint, write_whole
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("before")
    write_whole(path, lambda temporary: temporary.write_bytes(b"after"))
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "(No space left on device)"),
        (
            RuntimeError("unexpected pos 64 vs 0\nand more"),
            "(not all of it: the disk is full, or files may not be as large)",
        ),
        (RuntimeError("something else\nand more"), "(something else)"),
    ],
)
def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path: Path, error: Exception, said: str) -> None:
    path = tmp_path / "there.json"
    path.write_text("mine")

    def broken_off(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise error

    with pytest.raises(MHEError) as raised:
        write_whole(path, broken_off)
    assert str(raised.value) == f"the output {path} cannot be written {said}"
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_a_checkpoint_and_its_codebook_are_written_both_or_neither(tmp_path: Path) -> None:
    book = Codebook((2, 3))
    checkpoint, codes = tmp_path / "grown.pt", tmp_path / "grown.codes"
    write_checkpoint(checkpoint, {"new": 1}, codes, book)
    assert torch.load(checkpoint) == {"new": 1} and Codebook.load(codes).lengths == (2, 3)
    checkpoint.write_text("mine")
    codes.write_text("mine, too")
    with pytest.raises(MHEError, match="cannot be written"):
        write_checkpoint(checkpoint, {"new": Unpicklable()}, codes, book)
    assert (checkpoint.read_text(), codes.read_text()) == ("mine", "mine, too")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["grown.codes", "grown.pt"]


class Unpicklable:
    def __reduce__(self) -> str:
        raise OSError(28, "No space left on device")


def test_what_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new", "new")
    for path, said in (
        (tmp_path, "is a directory; give a file name"),
        (tmp_path / "a" / "b", "make it first"),
    ):
        with pytest.raises(MHEError, match=said):
            check_output(path, "example")
