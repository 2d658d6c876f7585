"""Files that are written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """What is at ``path`` stays until the new file is whole. A link stays one: what it names is replaced.

    Args:
        path: of the file. What is there and is no file, such as ``/dev/null`` or a pipe, is written to.
        write: writes all of it to the path that it is given, which is another.
    """
    if is_written_to(path):
        write(path)
        return
    target = path.resolve()
    temporary = target.with_name(f"{target.name}.tmp{os.getpid()}")
    try:
        write(temporary)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def is_written_to(path: Path) -> bool:
    """Whether it is a device, a pipe or a stream of this process, whose place no file may take."""
    # What a shell has made of /dev/stdout may be a file.
    return path.exists() and (not path.is_file() or Path("/dev") in path.absolute().parents)
