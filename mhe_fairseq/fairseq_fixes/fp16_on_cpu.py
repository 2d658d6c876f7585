"""``--fp16`` on the CPU, to try a GPU's commands out and to test them.

fairseq asks which GPU it is on in two places: where it keeps one flat fp32 copy of all parameters, and where
a gradient overflows, which is how it finds its loss scale. (A checkpoint written so has the state of the
optimiser by parameters, as with ``--fp16-no-flatten-grads``; give that flag to go on from it on a GPU.)

In all versions of fairseq. Can go when it asks the parameters for their device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from fairseq.logging import metrics
from fairseq.optim import FP16Optimizer
from fairseq.trainer import Trainer
from torch import Tensor

from mhe_fairseq.fairseq_fixes import wrap


def install() -> None:
    """Take the place of fairseq's methods, for models on the CPU only."""
    wrap(FP16Optimizer, "build_optimizer", _not_flat)
    wrap(Trainer, "train_step", _overflowing)


def _not_flat(build: Callable[..., Any]) -> Callable[..., Any]:
    def build_optimizer(cls: type, cfg: Any, params: Iterable[Tensor], **kwargs: Any) -> Any:
        params = list(params)
        if not any(each.is_cuda for each in params):
            cfg.common.fp16_no_flatten_grads = True
        return build(cls, cfg, params, **kwargs)

    return build_optimizer


def _overflowing(step: Callable[..., Any]) -> Callable[..., Any]:
    def train_step(self: Any, samples: Any, raise_oom: bool = False) -> Any:
        try:
            return step(self, samples, raise_oom)
        except (AssertionError, RuntimeError) as error:
            # The scaler has said it and lowered the scale; what failed is to make a zero on a GPU.
            if self.cuda or not isinstance(error.__context__, OverflowError):
                raise
        self.zero_grad()
        with metrics.aggregate("train"):
            metrics.log_scalar("loss_scale", self.optimizer.scaler.loss_scale, 0, 700, 4)
            metrics.log_stop_time("train_wall")
        return None

    return train_step
