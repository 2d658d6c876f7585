"""Files that a command writes: whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhe_fairseq.cli.output import check_output, write_whole
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
        (RuntimeError("unexpected pos 64 vs 0\nand more"), "(unexpected pos 64 vs 0)"),
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


def test_what_could_not_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    check_output(tmp_path / "new", "new")
    for path, said in (
        (tmp_path, "is a directory; give a file name"),
        (tmp_path / "a" / "b", "make it first"),
    ):
        with pytest.raises(MHEError, match=said):
            check_output(path, "example")
