"""What the trainer reads of an update's numbers: fewer copies, the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.optim.fairseq_optimizer import FairseqOptimizer
from fairseq.optim.fp16_optimizer import FP16Optimizer
from fairseq.trainer import Trainer
from torch import Tensor

import mhe_fairseq  # noqa: F401  (takes the place of fairseq's methods)
from mhe_fairseq.fairseq_fixes.host_reads import on_host


def test_numbers_keep_type_shape_and_value() -> None:
    made = [
        torch.tensor(1 / 3, requires_grad=True),
        torch.tensor([2**53 - 1]),
        torch.tensor([[float("inf")]], dtype=torch.bfloat16),
        torch.tensor(float("nan"), dtype=torch.float16),
        torch.tensor(True),
        torch.tensor(1 / 3, dtype=torch.float64),
    ]
    found = on_host(made)
    for one, other in zip(made, found, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and not other.requires_grad
        assert torch.equal(one, other) or (bool(one.isnan()) and bool(other.isnan()))
    assert on_host([]) == []


class Norm(FairseqOptimizer):
    """An optimiser whose gradients have this norm."""

    def __init__(self, parameter: Tensor) -> None:
        self.parameter = parameter

    @property
    def params(self) -> list[Tensor]:
        return [self.parameter]


class Scaled(FP16Optimizer):
    """Of half-precision gradients, in fp32."""

    def __init__(self, gradient: Tensor, factor: Any, scaler: Any, with_scale: bool = False) -> None:
        parameter = torch.nn.Parameter(torch.zeros_like(gradient))
        parameter.grad = gradient
        self.fp32_optimizer, self.scaler, self._needs_sync = Norm(parameter), scaler, False
        self._multiply_factor, self.with_scale = factor, with_scale

    @property
    def supports_step_with_scale(self) -> bool:
        return self.with_scale


@pytest.mark.parametrize("clip", [0.0, 0.5, 100.0])
@pytest.mark.parametrize("kind", [float, torch.tensor])
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_multiplied_to_the_bit(scaled: bool, kind: Callable[[float], Any], clip: float) -> None:
    gradient = torch.randn(100, generator=torch.Generator().manual_seed(0))
    seen: list[Any] = []
    scaler = SimpleNamespace(check_overflow=seen.append) if scaled else None
    ours = Scaled(gradient.clone(), kind(1 / 3), scaler)
    stock = Scaled(gradient.clone(), kind(1 / 3), scaler)
    norm = ours.clip_grad_norm(clip)
    expected = FP16Optimizer.clip_grad_norm.__wrapped__(stock, clip)
    assert torch.equal(norm, expected) and len(seen) == 2 * scaled
    assert isinstance(ours._multiply_factor, float)
    for each in (ours, stock):
        each._unscale_grads()
    assert torch.equal(ours.fp32_optimizer.parameter.grad, stock.fp32_optimizer.parameter.grad)  # type: ignore[arg-type]
    # Whoever scales by it himself gets it as fairseq has it.
    apex = Scaled(gradient.clone(), kind(1 / 3), scaler, with_scale=True)
    apex.clip_grad_norm(0.5)
    assert isinstance(apex._multiply_factor, Tensor)


def test_logged_sums_are_the_hosts_and_the_callers_are_left_alone() -> None:
    seen: list[Any] = []

    class Logs(Trainer):
        def __init__(self) -> None:
            self.task = SimpleNamespace(reduce_metrics=lambda logs, criterion: seen.append(logs))
            self.cfg, self.tpu, self._criterion = SimpleNamespace(), True, None
            self._warn_once = {"loss"}

    loss, many = torch.tensor(1 / 3), torch.arange(3)
    logs: list[dict[str, Any]] = [
        {"loss": loss, "ntokens": 7, "name": "a", "many": many},
        {"loss": torch.tensor(2)},
    ]
    Logs()._reduce_and_log_stats(logs, torch.tensor(7.0), None)
    ((first, second),) = seen
    assert first["loss"].item() == loss.item() and second["loss"].item() == 2
    assert second["loss"].dtype == torch.long
    assert first["ntokens"] == 7 and first["name"] == "a" and first["many"] is many
    assert logs[0]["loss"] is loss
    Logs()._reduce_and_log_stats(None, 7)
