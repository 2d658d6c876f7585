"""What lies where a file is written: links and devices stay what they are."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from mhe_fairseq.cli.output import check_output, write_whole
from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.files import is_written_to, replace_file
from mhe_fairseq.errors import MHEError


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    target, link = tmp_path / "disk" / "codes", tmp_path / "link"
    link.symlink_to(target)
    for lengths in ((2, 3), (4, 2)):  # a new file, and one that is replaced
        check_output(link, "codes")
        Codebook(lengths).save(link)
        assert link.is_symlink() and Codebook.load(target).lengths == lengths
    assert list((tmp_path / "disk").iterdir()) == [target]
    lost = tmp_path / "lost"
    lost.symlink_to(tmp_path / "no" / "file")
    with pytest.raises(MHEError, match=f"there is no directory {tmp_path / 'no'} to write"):
        check_output(lost, "codes")


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert is_written_to(pipe)
    check_output(pipe, "report.json")
    read = list[bytes]()
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, lambda path: path.write_bytes(b"said"))
    reader.join(timeout=10)
    assert read == [b"said"] and list(tmp_path.iterdir()) == [pipe]


def test_devices_are_written_to() -> None:
    null = Path(os.devnull)
    before = null.stat()
    check_output(null, "codes")
    Codebook((2, 3)).save(null)
    write_whole(null, lambda path: path.write_text("gone"))
    assert null.is_char_device() and null.stat().st_ino == before.st_ino
    # Whatever this process writes to.
    assert is_written_to(Path("/dev/stdout"))


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")

    def broken_off(to: Path) -> None:
        to.write_text("ha")
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        replace_file(path, broken_off)
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]
