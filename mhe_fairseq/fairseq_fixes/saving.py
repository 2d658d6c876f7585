"""Checkpoints are written whole or not at all, under all of their names, on a full disk too.

fairseq writes one file of a save under another name and renames it, but copies it over
``checkpoint_last.pt`` and ``checkpoint_best.pt`` in place: what cuts the copy short takes the last good
checkpoint with it. And where writing fails it writes again behind what is there already, which makes a file
that does not load.

In all versions of fairseq. Can go when every name of a save is written aside and renamed.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.file_io import PathManager

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap

#: Attempts to write a checkpoint, as fairseq's: file systems of clusters fail in passing.
ATTEMPTS = 3

#: Seconds between them.
WAIT = 2.5

logger = logging.getLogger(__name__)


def install() -> None:
    """Take the place of fairseq's functions."""
    wrap(checkpoint_utils, "torch_persistent_save", _saving)
    wrap(PathManager, "copy", _copying)


def write_whole(path: str, write: Callable[[Path], object]) -> None:
    """Have ``write`` make a file of another name, and give it its own when it is whole and on the disk.

    Raises:
        MHEError: it could not be written. What was there before is as it was.
    """
    part = Path(f"{path}.tmp")
    for attempt in range(1, ATTEMPTS + 1):
        try:
            write(part)
            with part.open("rb+") as file:
                os.fsync(file.fileno())
            os.replace(part, path)
            return
        except (OSError, RuntimeError) as error:
            part.unlink(missing_ok=True)
            if attempt == ATTEMPTS:
                raise MHEError(_told(path, error)) from error
            logger.warning("checkpoint %s could not be written (%s), once more", path, _first_line(error))
            time.sleep(WAIT)


def _saving(save: Callable[..., None]) -> Callable[..., None]:
    def torch_persistent_save(obj: Any, filename: Any, async_write: bool = False) -> None:
        if async_write or not PathManager.supports_rename(filename):
            save(obj, filename, async_write=async_write)
        else:
            write_whole(filename, lambda part: torch.save(obj, part))

    return torch_persistent_save


def _copying(copy: Callable[..., Any]) -> Callable[..., Any]:
    def copy_whole(src_path: str, dst_path: str, overwrite: bool = False) -> Any:
        if not PathManager.supports_rename(dst_path):
            return copy(src_path, dst_path, overwrite=overwrite)
        write_whole(dst_path, lambda part: shutil.copyfile(src_path, part))
        return True

    return copy_whole


def _told(path: str, error: Exception) -> str:
    folder = os.path.dirname(path) or "."
    try:
        room = f"{shutil.disk_usage(folder).free:,} bytes are free in {folder}"
    except OSError:
        room = f"{folder} is not there any more"
    return (
        f"checkpoint {path} could not be written ({_first_line(error)}; {room}); the checkpoints before it "
        "are as they were: make room and run the same command again"
    )


def _first_line(error: Exception) -> str:
    said = getattr(error, "strerror", None) or str(error)
    return said.partition("\n")[0] or type(error).__name__
