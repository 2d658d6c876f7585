"""Logits of a search: products of half-precision numbers that are not rounded to half precision."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.heads.base import wide

#: torch multiplies half-precision matrices into one of fp32, on CUDA only: since 2.8.
_INTO_FP32 = hasattr(torch.ops.aten.mm, "dtype")


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` in the type soft-maxes are computed in. Shape: (N, d), (V, d), (V,) -> (N, V).

    Without gradients logits of half-precision numbers are not rounded on the way. Rounded to bf16, logits
    between 8 and 16 are multiples of 1/16: the best tokens are often equal, and which of them a search takes
    hangs on the order of sums.
    """
    if not is_searching(x):
        return wide(F.linear(x, weight, bias))
    if _INTO_FP32 and x.is_cuda and weight.dtype == x.dtype:
        logits: Tensor = torch.ops.aten.mm.dtype(x, weight.t(), torch.float32)
        return logits if bias is None else logits.add_(bias)
    return F.linear(x.float(), weight.float(), None if bias is None else bias.float())


def is_searching(x: Tensor) -> bool:
    """Features of half precision whose logits nothing is learnt from."""
    if x.dtype not in (torch.bfloat16, torch.float16) or torch.is_grad_enabled():
        return False
    kind = x.device.type
    return not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind))
