"""Checkpoints that a killed training left behind."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path


def mend_last_checkpoint(folder: Path, say: Callable[[str], None]) -> None:
    """Put the newest whole checkpoint in the place of a last one that is cut short.

    fairseq writes the first file of a save whole or not at all, but copies it to the others, and a kill can
    cut a copy short.
    """
    last = folder / "checkpoint_last.pt"
    if not last.is_file() or _whole(last):
        return
    say(f"{last} is incomplete: its copy was interrupted")
    last.unlink()
    others = sorted(folder.glob("checkpoint_[0-9]*.pt"), key=lambda path: -path.stat().st_mtime)
    for other in others:
        if _whole(other):
            temporary = last.with_suffix(".tmp")
            shutil.copy(other, temporary)
            os.replace(temporary, last)
            return


def _whole(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (zipfile.BadZipFile, OSError):
        return False
