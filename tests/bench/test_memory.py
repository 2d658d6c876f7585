"""The peak of known patterns of allocations."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mhe_fairseq.bench.memory import Peak, measure_peak, running_peak
from mhe_fairseq.bench.steps import Batch, make_step
from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import grouped

KIB = 1024


@pytest.mark.parametrize(
    ("events", "left_out", "peak"),
    [
        ([], set(), 0),
        ([(1, 10), (2, 20), (1, -10), (3, 5)], set(), 30),
        ([(1, 10), (1, -10), (1, 30), (1, -30), (2, 25)], set(), 30),
        # Freed, but allocated before: does not count.
        ([(9, -100), (1, 10)], set(), 10),
        # Left out: held at the end.
        ([(1, 10), (2, 20), (3, 7), (3, -7)], {2}, 17),
        # The same address was something else before.
        ([(2, 50), (2, -50), (1, 10), (2, 20)], {2}, 50),
        ([(1, 10), (1, -10)], {1}, 10),
    ],
)
def test_running_peak(events: list[tuple[int, int]], left_out: set[int], peak: int) -> None:
    assert running_peak(events, left_out) == peak


class Pattern(torch.autograd.Function):
    """Allocates 8 KiB and keeps it, holds 32 more for a moment; 16 for a moment on the way back, then the
    gradient."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, weight: Tensor) -> Tensor:
        ctx.save_for_backward(torch.empty(8 * KIB, dtype=torch.uint8))
        torch.empty(32 * KIB, dtype=torch.uint8)
        return weight.new_empty(())

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, _: Tensor) -> Tensor:
        torch.empty(16 * KIB, dtype=torch.uint8)
        return torch.empty(1024)


def test_peak_of_a_known_pattern() -> None:
    weight = nn.Parameter(torch.zeros(1024))
    there = torch.zeros(1 << 20)  # before the step: does not count
    peaks = set()
    for _ in range(3):
        weight.grad = None
        peaks.add(measure_peak(lambda: Pattern.apply(weight), [weight]))
    assert peaks == {Peak(extra=40 * KIB, gradients=4096)}
    assert there.numel() == 1 << 20


def test_a_linear_layer_by_hand() -> None:
    """y = x W^T (100 x 50 floats), its square, the same again for the square's gradient and y's."""
    x, weight = torch.randn(100, 20), nn.Parameter(torch.randn(50, 20))
    block = 100 * 50 * 4

    def loss() -> Tensor:
        return (x @ weight.T).exp().sum()

    peak = measure_peak(loss, [weight])
    assert peak.gradients == weight.numel() * 4
    # exp keeps its result, its gradient is the third block; scalars beside.
    assert 2 * block <= peak.extra < 3 * block + 100


@pytest.mark.parametrize("name", ["softmax", "product", "mixture", "cascade", "cascade-tied", "sampling"])
def test_the_peak_of_a_head_is_the_same_every_time(name: str) -> None:
    book = Codebook((12, 16), vocab_size=190)
    batch = Batch.random(190, 8, 32, torch.device("cpu"))
    step = make_step(name, book, batch, smoothing=True)
    peaks = []
    for _ in range(2):
        step._updates = 0  # what is sampled depends on it
        step.prepare()
        peaks.append(measure_peak(step.loss, step.parameters))
    assert peaks[0] == peaks[1]
    assert peaks[0].gradients == sum(p.numel() * 4 for p in step.parameters)


def test_softmax_holds_three_tables_of_probabilities() -> None:
    """log p, and the gradients that the two terms of the loss send back to it."""
    batch = Batch.random(2000, 4, 100, torch.device("cpu"))
    step = make_step("softmax", Codebook((40, 50)), batch, smoothing=True)
    step.prepare()
    tables = measure_peak(step.loss, step.parameters).extra / (100 * 2000 * 4)
    assert tables == pytest.approx(3.0, abs=0.05)


def test_a_gradient_in_huge_pages_counts_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cascade's large gradient is not of torch's allocator."""
    book = Codebook((8, 32))
    batch = Batch.random(256, 8, 32, torch.device("cpu"))
    step = make_step("cascade", book, batch, smoothing=False)
    step.prepare()
    usual = measure_peak(step.loss, step.parameters)
    monkeypatch.setattr(grouped, "_HUGE", 1)
    step.prepare()
    huge = measure_peak(step.loss, step.parameters)
    table = step.parameters[-1].grad
    assert table is not None and table.numel() == 256 * 8
    # numpy's memory cannot be resized; a copy of torch's could.
    assert not table.untyped_storage().resizable()
    assert huge == usual
