"""A fairseq checkpoint, read for a command, and what is wrong with it in one sentence."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

from mhe_fairseq.errors import MHEError


def read_checkpoint(path: Path, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
    """As fairseq's commands read it, in the safe way of ``mhe_fairseq.fairseq_fixes.checkpoints``.

    Args:
        path: of a checkpoint that ``fairseq-train`` wrote.
        overrides: values in place of those in its config.

    Raises:
        MHEError: it cannot be read, or is no fairseq checkpoint.
    """
    # Takes seconds, and bad arguments should be told before.
    from fairseq import checkpoint_utils

    try:
        with warnings.catch_warnings():
            # hydra's, about fairseq's own config, which older checkpoints are converted to.
            warnings.simplefilter("ignore", UserWarning)
            state: dict[str, Any] = checkpoint_utils.load_checkpoint_to_cpu(str(path), overrides)
        if not isinstance(state["model"], dict) or not state["cfg"].task._name:
            raise TypeError("no weights, or no task")
    except MHEError:
        raise
    except OSError as error:
        raise MHEError(f"checkpoint {path} cannot be read ({error.strerror or error})") from error
    except Exception as error:  # fairseq looks for parts that another file does not have
        raise MHEError(
            f"{path} is not a checkpoint of a fairseq model ({path.stat().st_size:,} bytes, "
            f"{type(error).__name__}); give a file that fairseq-train wrote"
        ) from error
    return state
