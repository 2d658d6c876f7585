"""fairseq's data sets on numpy 2, which has no ``np.compat`` any more.

fairseq asks for ``np.compat.long`` when sentences are samples of their own: ``--sample-break-mode eos`` of
the language modeling task, everything that its fairseq-interactive and hub read, and ``--num-batch-buckets``
of translation. Without that name these end in an AttributeError, for fairseq's own models too.

Since numpy 2. Can go when fairseq does not ask for the name.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from fairseq.data import language_pair_dataset, token_block_dataset


class _NumpyWithCompat:
    """numpy, and ``compat.long`` as numpy 1 had it."""

    compat = SimpleNamespace(long=int)

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)


def install() -> None:
    """Give the two modules the name that they miss; numpy itself stays as it is."""
    if hasattr(np, "compat"):
        return
    for module in (token_block_dataset, language_pair_dataset):
        module.np = _NumpyWithCompat()
