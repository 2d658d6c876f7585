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

    Without gradients, on CUDA and with a torch that can, logits of half-precision numbers are not rounded on
    the way: rounded to bf16, a logit of 8 is one of 32 numbers between 7 and 9, so that the best tokens are
    often equal and which of them is taken hangs on the order of sums. Elsewhere they are rounded as in
    training.
    """
    kind = x.device.type
    exact = (
        _INTO_FP32
        and kind == "cuda"
        and x.dtype in (torch.bfloat16, torch.float16)
        and weight.dtype == x.dtype
        and not torch.is_grad_enabled()
        and not torch.is_autocast_enabled(kind)
    )
    if not exact:
        return wide(F.linear(x, weight, bias))
    logits: Tensor = torch.ops.aten.mm.dtype(x, weight.t(), torch.float32)
    return logits if bias is None else logits.add_(bias)
