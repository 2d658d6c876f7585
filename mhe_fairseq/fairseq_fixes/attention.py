"""Whether torch may compute attention by cuDNN, which plans its work for every shape it has not seen.

Where torch prefers cuDNN's attention (cards of compute capability 9.0 and 10.0, by its version), a batch of a
new shape costs the host the time to make a plan. Others have measured 0.4 s forward and 0.6 s backward, on a
B200 with torch 2.11 (https://github.com/modelscope/FunASR/issues/3704); torch has a remedy of its own, off by
default (https://github.com/pytorch/pytorch/pull/155958). fairseq pads a batch to its longest sentence and
fills it by tokens, so most batches have a shape of their own.

Can go when torch makes no plan for each new shape, or decides by itself.
"""

from __future__ import annotations

import logging
import os

import torch

from mhe_fairseq.errors import MHEError

#: ``0``: no cuDNN attention; ``1``: as torch has it.
VARIABLE = "MHE_CUDNN_ATTENTION"

#: Whether it is turned off where the variable is not set.
OFF_BY_DEFAULT = False

logger = logging.getLogger(__name__)


def install() -> None:
    """On a machine with CUDA, turn cuDNN's attention off where that is asked for, and log it.

    Raises:
        MHEError: the variable is neither 0 nor 1.
    """
    given = os.environ.get(VARIABLE) or None
    if given not in (None, "0", "1"):
        raise MHEError(
            f"{VARIABLE} must be 0 (torch's attention without cuDNN) or 1 (with it, as torch chooses), got "
            f"'{given}'"
        )
    off = OFF_BY_DEFAULT if given is None else given == "0"
    if off and torch.cuda.is_available() and torch.backends.cuda.cudnn_sdp_enabled():
        torch.backends.cuda.enable_cudnn_sdp(False)
        logger.info(
            "mhe: attention without cuDNN, which plans again for each new shape (%s=1: torch's default)",
            VARIABLE,
        )
