"""Steps compute the losses of the criterions."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.bench.steps import HEADS, LABEL_SMOOTHING, Batch, dense_loss, head_loss, make_step
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SoftmaxHead

CPU = torch.device("cpu")


@pytest.mark.parametrize("smoothing", [False, True])
def test_the_dense_loss_is_fairseqs(smoothing: bool) -> None:
    criterion = pytest.importorskip("fairseq.criterions.label_smoothed_cross_entropy")
    torch.manual_seed(0)
    weight, x, y = torch.randn(30, 6), torch.randn(7, 6), torch.randint(30, (7,))
    log_probs = torch.log_softmax(x @ weight.T, dim=-1)
    epsilon = LABEL_SMOOTHING if smoothing else 0.0
    expected, _ = criterion.label_smoothed_nll_loss(log_probs, y, epsilon)
    assert float(dense_loss(weight, x, y, smoothing)) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("smoothing", [False, True])
def test_a_heads_loss_is_the_same_loss(smoothing: bool) -> None:
    torch.manual_seed(0)
    head = SoftmaxHead(6, Codebook((5, 6)))
    x, y = torch.randn(7, 6), torch.randint(30, (7,))
    ours, dense = head_loss(head, x, y, smoothing), dense_loss(head.table.weight, x, y, smoothing)
    assert ours.item() == pytest.approx(dense.item(), rel=1e-5)


@pytest.mark.parametrize("name", HEADS)
def test_every_step_makes_every_gradient(name: str) -> None:
    book = Codebook((12, 16), vocab_size=190)
    batch = Batch.random(190, 8, 32, CPU)
    step = make_step(name, book, batch, smoothing=True)
    step.prepare()
    step.run()
    assert all(p.grad is not None for p in step.parameters) and batch.features.grad is not None
    tied = name == "cascade-tied"
    assert step.added == sum(p.numel() for p in step.parameters) - (190 * 8 if tied else 0)
    step.release()
    assert all(p.grad is None for p in step.parameters) and batch.features.grad is None


def test_targets_follow_zipfs_law() -> None:
    torch.manual_seed(0)
    target = Batch.random(4, 1, 25_000, CPU).target
    shares = torch.bincount(target, minlength=4) / 25_000
    assert shares.tolist() == pytest.approx([0.48, 0.24, 0.16, 0.12], abs=0.01)
    assert Batch.random(1, 1, 9, CPU).target.tolist() == [0] * 9


def test_a_head_that_cannot_be_made_is_named() -> None:
    batch = Batch.random(12, 2, 3, CPU)
    with pytest.raises(MHEError, match=r"sampling, V = 12: .* at least two groups .* has 1 \(--heads"):
        make_step("sampling", Codebook((1, 12)), batch, smoothing=True)
    with pytest.raises(MHEError, match="there is no head 'other' to measure; there are softmax, product"):
        make_step("other", Codebook((3, 4)), batch, smoothing=True)
