"""What fairseq's trainer reads of an update's numbers comes to the host in two copies, not in one a number.

It asks the device for the norm of the gradients before the optimiser's step, one to four times, and after it
for the norm again and for each sum that is logged. Every time the host waits for all that is queued, and each
sum is divided, added and rounded on the device. Here the norm is read once, and the sums once, together: what
follows is arithmetic of the host, on the same numbers in the same types.

In all versions of fairseq. Can go when its trainer reads its numbers once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.trainer import Trainer
from torch import Tensor

from mhe_fairseq.fairseq_fixes import wrap


def install() -> None:
    """Take the place of fairseq's methods."""
    wrap(FairseqOptimizer, "clip_grad_norm", _norm_read)
    wrap(FP16Optimizer, "clip_grad_norm", _factor_read)
    wrap(Trainer, "_reduce_and_log_stats", _sums_read)


def on_host(numbers: list[Tensor]) -> list[Tensor]:
    """Tensors of one number each on the host, in their own types and shapes, by one copy. fp64 keeps every
    fp32 and every whole number up to 2^53."""
    if not numbers:
        return []
    together = torch.stack([each.detach().reshape(()).double() for each in numbers]).cpu()
    return [value.to(each.dtype).view(each.shape) for value, each in zip(together, numbers, strict=True)]


def _norm_read(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def clip_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        return method(self, *args, **kwargs).cpu()

    return clip_grad_norm


def _factor_read(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A number of the host multiplies fp32 gradients as a tensor of it does, and need not be copied."""

    def clip_grad_norm(self: Any, *args: Any, **kwargs: Any) -> Tensor:
        norm = method(self, *args, **kwargs)
        factor = self._multiply_factor
        if isinstance(factor, Tensor) and factor.device.type == "cpu" and factor.dtype == torch.float32:
            # Apex scales by it in its own way.
            if not getattr(self, "supports_step_with_scale", False):
                self._multiply_factor = factor.item()
        return norm

    return clip_grad_norm


def _sums_read(method: Callable[..., Any]) -> Callable[..., Any]:
    def _reduce_and_log_stats(self: Any, logging_outputs: Any, sample_size: Any, *rest: Any) -> Any:
        logs = [dict(log) for log in logging_outputs or []]
        size = {"": sample_size}
        places = [(log, name) for log in [*logs, size] for name in log if _is_number(log[name])]
        for (log, name), value in zip(places, on_host([log[name] for log, name in places]), strict=True):
            log[name] = value
        return method(self, logs if logging_outputs else logging_outputs, size[""], *rest)

    return _reduce_and_log_stats


def _is_number(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex()
