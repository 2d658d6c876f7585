"""Whether a head was given what it can read: a wrong shape or token may compute something all the same."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError

#: Types that may name tokens.
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def check_features(features: Tensor, dim: int) -> None:
    """Refuse what is not (N, d).

    Raises:
        MHEError: another shape.
    """
    if features.dim() == 2 and features.size(1) == dim:
        return
    shape = tuple(features.shape)
    more = "; flatten(0, -2) makes rows of them" if features.dim() > 2 and shape[-1] == dim else ""
    raise MHEError(f"a head reads features of shape (N, {dim}); got {shape}{more}")


def checked_target(target: Tensor, features: Tensor, vocab_size: int) -> Tensor:
    """As int64, which alone every operator takes for numbers of rows.

    A negative number would count from the last token, and -100 be left out of a soft-max's loss and of no
    other. That is looked for on the CPU only: on an accelerator it would be a wait.

    Shape: (N,) of any integers -> (N,) long.

    Raises:
        MHEError: not one token a row of features, or outside of 0..V-1.
    """
    if target.dtype not in _INTEGERS:
        raise MHEError(f"a target is tokens, whole numbers of a type such as torch.long; got {target.dtype}")
    if target.dim() != 1 or len(target) != len(features):
        raise MHEError(
            f"a target is one token for each of the {len(features)} rows of features; got shape "
            f"{tuple(target.shape)}"
        )
    if target.device.type == "cpu" and len(target) and not _is_traced(target):
        numbers = target.numpy()
        low, high = int(numbers.min()), int(numbers.max())
        if low < 0 or high >= vocab_size:
            raise MHEError(
                f"tokens of a target are 0..{vocab_size - 1}; got {low if low < 0 else high} (leave out the "
                "rows that have none, such as padding, with their features)"
            )
    return target.long()


def _is_traced(target: Tensor) -> bool:
    """Whether its numbers cannot be looked at: it is compiled, made up, or stands for several under
    ``torch.func``."""
    if torch.compiler.is_compiling() or type(target) is not Tensor:
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
