"""A step of beam search on a GPU that is not there: the host does not wait, and no devices are mixed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mhe_fairseq.heads.kernels import launch
from tests.heads.kernels.test_search import heads_to_count
from tests.made_up_gpu import DEVICE, MadeUpGPU, MixedError
from tests.search.one_step import Step

KERNELS = {"cascade": ["given_kernel", "best_first_kernel"], "product": ["best_tokens_kernel"]}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", heads_to_count())
def test_a_step(name: str, dtype: torch.dtype) -> None:
    step, scores = prepared(name, dtype, compact=True)
    gpu = MadeUpGPU()
    gpu.move(step)
    scores = gpu.move(scores)
    with gpu.running() as (strict, launched):
        # The first step of a search reads one hypothesis of each sentence.
        for number in (0, 1):
            found = step.run(scores, number)
    assert launched == 2 * KERNELS.get(name.split(" ")[0], KERNELS["product"])
    # fairseq's own fills in what a mask says, with one number: on a GPU that is no waiting.
    assert set(strict.found) == {"index_put_"}
    assert {each.device for each in found} == {DEVICE}


@pytest.mark.parametrize("name", [name for name in heads_to_count() if name != "mixture"])
def test_a_wide_step(name: str) -> None:
    """A mixture's looks for sums that vanish."""
    step, scores = prepared(name, torch.bfloat16, compact=False)
    gpu = MadeUpGPU()
    gpu.move(step)
    scores = gpu.move(scores)
    with gpu.running() as (strict, _):
        found = step.run(scores)
    assert set(strict.found) == {"index_put_"}
    assert {each.device for each in found} == {DEVICE}


def test_waiting_and_mixing_would_be_seen() -> None:
    gpu = MadeUpGPU()
    x = gpu.move(torch.ones(3))
    with gpu.running() as (strict, _):
        with pytest.raises(RuntimeError, match="meta tensors"):
            bool(x.any())
        with pytest.raises(RuntimeError, match="not on the expected device"):
            x + torch.ones(3)
        with pytest.raises(MixedError):
            torch.ones(3).to(DEVICE)
    assert strict.found == ["_local_scalar_dense"]


def prepared(name: str, dtype: torch.dtype, compact: bool) -> tuple[Step, torch.Tensor]:
    """What a search makes once has been made."""
    head: Any = heads_to_count()[name].eval().to(dtype)
    step, scores = Step([head], [torch.randn(10, 16, dtype=dtype)], 5, compact), -torch.rand(2, 5, 1)
    if compact:
        with launch.watched(lambda _: False):
            step.run(scores)
    return step, scores
