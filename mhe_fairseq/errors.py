"""The one exception of the package."""

from __future__ import annotations


class MHEError(ValueError, RuntimeError):
    """Bad input, said in one sentence: what was wrong, the values seen, what would be right.

    It is a ``ValueError`` for callers of the library. It is a ``RuntimeError`` too because fairseq's
    trainer writes a ``crash.pt`` for any other exception that leaves a training step.
    """
