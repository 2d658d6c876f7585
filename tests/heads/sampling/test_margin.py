"""SamplingHead with a margin: the estimate written out, the exact loss, what is refused or left out."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import Margin, SoftmaxHead
from mhe_fairseq.heads.sampling import kernels
from tests.drawn import examples
from tests.heads.oracle import codebooks, features_for, softmax_logits, targets_for, weighed
from tests.heads.sampling.cases import (
    DIM,
    SPREAD,
    build,
    dense_estimate,
    every_variant,
    groups_of,
    samples_of,
)

ARC, COS = Margin("arcface", 6.0), Margin("cosface", 6.0)


@examples(60)
@given(
    book=codebooks(max_vocab=100, min_heads=2),
    variant=st.sampled_from(["shared", "own", "batch"]),
    margin=st.sampled_from([ARC, COS, Margin("arcface", 20.0, 2.0)]),
    count=st.sampled_from([0, 1, 2, 9, 37]),
    smoothing=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_the_estimate_and_its_gradients_are_the_dense_ones(
    book: Codebook,
    variant: str,
    margin: Margin,
    count: int,
    smoothing: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    number = len(groups_of(book).unique())
    assume(variant != "shared" or number > 1)
    head = build(book, variant, data.draw(st.integers(1, max(1, number - 1))), seed, margin=margin)
    head.set_num_updates(seed)
    sampled = samples_of(head, count) if variant == "shared" else []
    y = targets_for(book, count, seed)

    x = features_for(count, DIM, torch.float64, seed).requires_grad_()
    z, weight = x.detach().clone().requires_grad_(), head.table.weight.detach().clone().requires_grad_()
    loss = head(x, y, smoothing=smoothing, accuracy=True)
    nll, smooth = dense_estimate(head, z, y, weight, sampled)
    torch.testing.assert_close(loss.nll, nll)
    assert (loss.smooth is None) is not smoothing
    if smoothing:
        torch.testing.assert_close(loss.smooth, smooth)
    weighed(loss.nll, loss.smooth).backward()
    weighed(nll, smooth if smoothing else None).backward()
    torch.testing.assert_close(x.grad, z.grad, atol=1e-8, rtol=1e-6)
    torch.testing.assert_close(head.table.linear.weight.grad, weight.grad, atol=1e-8, rtol=1e-6)


@every_variant
def test_the_exact_loss_is_that_of_the_dense_head(variant: str) -> None:
    head, dense = build(SPREAD, variant, margin=ARC), SoftmaxHead(DIM, SPREAD, margin=ARC).double()
    dense.table.linear.weight.data.copy_(head.table.weight)
    head.exact, head.chunk = True, 3
    x, y = features_for(7, DIM, torch.float64, 1), targets_for(SPREAD, 7, 1)
    for training in (True, False):
        found, expected = head.train(training)(x, y), dense.train(training)(x, y)
        torch.testing.assert_close(found.nll, expected.nll)
        torch.testing.assert_close(found.smooth, expected.smooth)


def test_predicted_groups() -> None:
    """Where every group is drawn but one, the estimate is close to the exact loss and can be told from the
    margin's absence."""
    head = build(SPREAD, "predicted", groups=3, margin=COS)
    x, y = features_for(400, DIM, torch.float64, 1), targets_for(SPREAD, 400, 1)
    logits = softmax_logits(head, x, head.table.weight.detach(), y)
    exact = logits.logsumexp(1)
    ratios = []
    with torch.no_grad():
        for update in range(30):
            head.set_num_updates(update)
            gold = logits.gather(1, y.unsqueeze(1)).squeeze(1)
            ratios.append((head(x, y).nll + gold - exact).exp())
    # Z_hat is without bias, row by row; over rows and draws its mean is close.
    assert abs(float(torch.stack(ratios).mean()) - 1) < 0.01
    assert float(torch.stack(ratios).std()) > 1e-4


@every_variant
def test_accuracy_is_without_the_margin(variant: str) -> None:
    head = build(SPREAD, variant, margin=Margin(scale=6.0, margin=1.5))
    x = features_for(40, DIM, torch.float64, 1)
    best = head.log_probs(x).argmax(dim=-1)
    assert head(x, best, accuracy=True).stats["sampled_accuracy"].eq(1).all()
    worst = head.log_probs(x).argmin(dim=-1)
    assert head(x, worst, accuracy=True).stats["sampled_accuracy"].eq(0).all()


def test_gradients_by_finite_differences() -> None:
    head = build(SPREAD, groups=2, margin=ARC)
    head.set_num_updates(3)
    y = torch.tensor([0, 5, 9, 9])

    def loss(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(head, {"table.linear.weight": weight}, (x, y))
        return out.nll, out.smooth

    x = features_for(4, DIM, torch.float64, 0).requires_grad_()
    weight = head.table.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types_are_close(dtype: torch.dtype) -> None:
    exact = build(SPREAD, groups=2, margin=ARC)
    head = copy.deepcopy(exact).to(dtype)
    y, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    losses, tolerance = [], 1e-4 if dtype == torch.float32 else 0.2
    for each, features in ((exact, x), (head, x.to(dtype))):
        each.set_num_updates(2)
        loss = each(features, y)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        losses.append(loss)
    assert losses[1].nll.dtype == losses[1].smooth.dtype == torch.float32
    torch.testing.assert_close(losses[1].nll.double(), losses[0].nll, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(losses[1].smooth.double(), losses[0].smooth, atol=tolerance, rtol=tolerance)
    grad = head.table.linear.weight.grad
    assert grad is not None and grad.dtype == dtype
    torch.testing.assert_close(grad.double(), exact.table.linear.weight.grad, atol=tolerance, rtol=tolerance)


def test_autocast_is_close() -> None:
    head = build(SPREAD, groups=2, margin=ARC).float()
    head.set_num_updates(2)
    y, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float32, 1)
    plain = head(x, y).nll
    with torch.autocast("cpu", torch.bfloat16):
        nll = head(x, y).nll
    nll.sum().backward()
    assert nll.dtype == torch.float32
    torch.testing.assert_close(nll, plain, atol=0.3, rtol=0.05)


def test_a_row_of_an_embedding_that_is_zero_has_no_gradient() -> None:
    embedding = torch.nn.Embedding(len(SPREAD), DIM, padding_idx=1).double()
    head = build(SPREAD, groups=2, tied=embedding, margin=ARC)
    head.set_num_updates(1)
    y, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    loss = head(x, y)
    (loss.nll.sum() + loss.smooth.sum()).backward()
    grad = embedding.weight.grad
    assert grad is not None and grad.isfinite().all() and not grad[1].any() and grad[0].any()


def test_kernels_leave_it_to_plain_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels.dispatch, "serve", lambda *_: True)
    x = features_for(2, DIM, torch.float32, 1)
    assert kernels.serves(build(SPREAD).float(), x)
    assert not kernels.serves(build(SPREAD, margin=ARC).float(), x)
