"""Where a command may write."""

from __future__ import annotations

import os
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
