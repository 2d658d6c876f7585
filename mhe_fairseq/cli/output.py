"""Where a command may write, and how."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from mhe_fairseq.errors import MHEError


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
    if not path.parent.is_dir():
        raise MHEError(f"there is no directory {path.parent} to write the output {path} to; make it first")
    if not os.access(path.parent, os.W_OK):
        raise MHEError(f"the directory {path.parent} may not be written to; give another output than {path}")


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """All of a file or nothing: what was at ``path`` stays until the new file is whole.

    Args:
        path: of the file.
        write: writes all of it to the path that it is given, which is another.

    Raises:
        MHEError: it cannot be written.
    """
    temporary = path.with_name(path.name + f".tmp{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where a disk is full
        said = error.strerror if isinstance(error, OSError) else None
        said = said or str(error).strip().partition("\n")[0]
        raise MHEError(f"the output {path} cannot be written ({said})") from error
    finally:
        temporary.unlink(missing_ok=True)
