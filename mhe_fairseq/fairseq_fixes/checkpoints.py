"""Checkpoints load under torch's ``weights_only=True``, and a bad one is told in one sentence.

``torch.load`` refuses every class that was not allowed beforehand. fairseq writes ``argparse.Namespace`` into
its checkpoints, and with ``--eval-bleu`` n-gram counts, numpy arrays of whole numbers: these are allowed,
and no environment variable is needed. Whatever else a file names is refused before any of it runs.

Since torch 2.6 (fairseq issue 5610). Can go when fairseq allows its own classes.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap

#: What a numpy array is unpickled by; of its kinds of numbers only the whole ones that fairseq counts in.
_NUMPY_ARRAY = (np.zeros(0).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.int64)))

#: Exactly what fairseq puts into a checkpoint beside tensors, numbers, strings and containers.
ALLOWED_CLASSES: tuple[Any, ...] = (argparse.Namespace, *_NUMPY_ARRAY)


def install() -> None:
    """Allow fairseq's classes, and name what is wrong with a checkpoint that does not load."""
    torch.serialization.add_safe_globals(list(ALLOWED_CLASSES))
    wrap(checkpoint_utils, "load_checkpoint_to_cpu", explained)


def explained(load: Callable[..., Any]) -> Callable[..., Any]:
    """A function that reads a checkpoint from the path it is given first, and says what is wrong with it."""

    def load_checkpoint_to_cpu(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except pickle.UnpicklingError as error:
            found = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"names {found.group(1)}, which" if found else "holds something that"
            raise MHEError(
                f"checkpoint {path} {what} is no part of a fairseq checkpoint; it was refused and nothing in "
                "it was run"
            ) from error
        except (RuntimeError, EOFError, KeyError, ValueError) as error:
            if isinstance(error, MHEError) or not _is_damaged(path):
                raise
            raise MHEError(
                f"checkpoint {path} is damaged or cut short ({os.path.getsize(path):,} bytes, "
                f"{type(error).__name__}); use another one, such as checkpoint_best.pt"
            ) from error

    return load_checkpoint_to_cpu


def _is_damaged(path: str) -> bool:
    """The file is there and torch cannot read it as an archive."""
    if not os.path.isfile(path):
        return False
    try:
        torch._C.PyTorchFileReader(path)
    except RuntimeError:
        return True
    return False
