"""Where a command may write, and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mhe_fairseq.coding.files import is_written_to, replace_file
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from mhe_fairseq.coding import Codebook


def check_output(path: Path, example: str) -> None:
    """Refuse, before the work, what could not be written after it.

    Args:
        path: of the file to write.
        example: a name for it, to suggest.

    Raises:
        MHEError: a directory, no directory to write to, or one that may not be written to.
    """
    if path.is_dir():
        raise MHEError(f"the output {path} is a directory; give a file name, such as {path / example}")
    if is_written_to(path):
        if not os.access(path, os.W_OK):
            raise MHEError(f"the output {path} may not be written to; give another one")
        return
    # Where a link leads.
    folder = (path.resolve() if path.is_symlink() else path).parent
    if not folder.is_dir():
        raise MHEError(f"there is no directory {folder} to write the output {path} to; make it first")
    if not os.access(folder, os.W_OK):
        raise MHEError(f"the directory {folder} may not be written to; give another output than {path}")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """``replace_file``, and what goes wrong in a sentence.

    Raises:
        MHEError: it cannot be written.
    """
    try:
        replace_file(path, write)
    except (OSError, RuntimeError) as error:
        raise MHEError(f"the output {path} cannot be written ({_reason(error)})") from error


def write_checkpoint(path: Path, state: Any, codes: Path, book: Codebook | None) -> None:
    """A checkpoint, and the codebook of its head beside it: both or neither.

    Args:
        path: of the checkpoint.
        state: of it.
        codes: of the codebook.
        book: None: no codebook is written.

    Raises:
        MHEError: either cannot be written.
    """
    import torch

    def write(to: Path) -> None:
        torch.save(state, to)
        if book is not None:
            # Where the checkpoint cannot be written there is no codebook either.
            write_whole(codes, book.save)

    write_whole(path, write)


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = str(error).strip().partition("\n")[0]
    # torch's writer, where a disk is full, counts bytes.
    if "unexpected pos" in said or "inline_container" in said:
        return "not all of it: the disk is full, or files may not be as large"
    return said
