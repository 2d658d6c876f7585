"""SamplingHead's estimate of the softmax in training: unbiased, its gradients, dtypes and cost."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.sampling import head as sampling
from mhe_fairseq.heads.sampling.group_sample import systematic
from mhe_fairseq.heads.sampling.head import PARTS, VARIANTS, SamplingHead
from tests.heads.oracle import codebooks, features_for, targets_for, weighed
from tests.heads.sampling.cases import (
    DIM,
    SPREAD,
    Largest,
    build,
    dense_estimate,
    every_variant,
    groups_of,
    samples_of,
    the_papers_variants,
)


def fix_sample(monkeypatch: pytest.MonkeyPatch, groups: list[int]) -> None:
    """Every part of a batch draws the same groups, counted among those that are not sure."""
    monkeypatch.setattr(sampling, "sample_groups", lambda *_: [np.array(groups, dtype=np.int64)] * PARTS)


# ---- the normaliser


def all_samples(inclusion: Tensor) -> list[tuple[float, list[int]]]:
    """Every outcome of ``sample_groups`` with its probability: all orders, all stretches of the shift."""
    outcomes = []
    orders = list(itertools.permutations(range(len(inclusion))))
    for order in orders:
        ends = inclusion[list(order)].cumsum(0)
        cuts = torch.cat([torch.tensor([0.0, 1.0]).double(), ends - ends.floor()]).sort().values
        for low, high in zip(cuts[:-1], cuts[1:], strict=True):
            if high - low > 1e-12:
                sample = systematic(inclusion.numpy(), np.array(order), np.array([(low + high) / 2]))[0]
                outcomes.append((float(high - low) / len(orders), sample.tolist()))
    return outcomes


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_normaliser_is_unbiased(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean of Z_hat over all samples, each with its probability, is Z."""
    head = build(SPREAD, groups=groups)
    target = torch.arange(len(SPREAD))
    x = features_for(len(SPREAD), DIM, torch.float64, 3)
    logits = x @ head.table.weight.T
    outcomes = all_samples(head.inclusion[head.inclusion < 1])
    assert math.isclose(sum(p for p, _ in outcomes), 1.0)
    assert len({tuple(s) for _, s in outcomes}) > 1
    mean = torch.zeros(len(target), dtype=torch.float64)
    for probability, sample in outcomes:
        fix_sample(monkeypatch, sample)
        log_z = head(x, target).nll + logits.gather(1, target.unsqueeze(1)).squeeze(1)
        mean += probability * log_z.exp()
    torch.testing.assert_close(mean, logits.exp().sum(dim=1))


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_smoothing_term_has_the_exact_mean_logit(groups: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """smooth - log Z_hat is minus the mean logit of all V tokens, whatever was sampled."""
    head = build(SPREAD, groups=groups)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 3)
    logits = x @ head.table.weight.T
    for _, sample in all_samples(head.inclusion[head.inclusion < 1])[::5]:
        fix_sample(monkeypatch, sample)
        loss = head(x, target)
        log_z = loss.nll + logits.gather(1, target.unsqueeze(1)).squeeze(1)
        torch.testing.assert_close(loss.smooth - log_z, -logits.mean(dim=1))


# ---- training loss and gradients


@given(
    book=codebooks(max_vocab=200, min_heads=2),
    # "predicted" is written out in test_predicted.py.
    variant=st.sampled_from([each for each in VARIANTS if each != "predicted"]),
    count=st.sampled_from([0, 1, 2, 9, 37]),
    smoothing=st.booleans(),
    seed=st.integers(0, 99),
    data=st.data(),
)
def test_training_estimate_and_gradients_are_the_dense_ones(
    book: Codebook, variant: str, count: int, smoothing: bool, seed: int, data: st.DataObject
) -> None:
    number = len(groups_of(book).unique())
    assume(variant != "shared" or number > 1)
    head = build(book, variant, data.draw(st.integers(1, max(1, number - 1))), seed)
    head.set_num_updates(seed)
    sampled = samples_of(head, count) if variant == "shared" else []
    target = targets_for(book, count, seed)

    x = features_for(count, DIM, torch.float64, seed).requires_grad_()
    loss = head(x, target, smoothing=smoothing, accuracy=True)
    weight, y = head.table.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    nll, smooth = dense_estimate(head, y, target, weight, sampled)
    torch.testing.assert_close(loss.nll, nll)
    torch.testing.assert_close(loss.stats["sampled_nll"], nll.detach())
    assert (loss.smooth is None) is not smoothing
    if smoothing:
        torch.testing.assert_close(loss.smooth, smooth)
    weighed(loss.nll, loss.smooth).backward()
    weighed(nll, smooth if smoothing else None).backward()
    torch.testing.assert_close(x.grad, y.grad, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(head.table.linear.weight.grad, weight.grad, atol=1e-9, rtol=1e-7)


@the_papers_variants
def test_gradients_by_finite_differences(variant: str) -> None:
    head = build(SPREAD, variant, groups=2)
    head.set_num_updates(3)
    target = torch.tensor([0, 5, 9, 9])

    def loss(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        out = torch.func.functional_call(head, {"table.linear.weight": weight}, (x, target))
        return out.nll, out.smooth

    x = features_for(4, DIM, torch.float64, 0).requires_grad_()
    weight = head.table.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(loss, (x, weight))


@the_papers_variants
def test_every_parameter_gets_a_gradient_even_from_no_tokens(variant: str) -> None:
    head = build(SPREAD, variant)
    x = torch.zeros(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = head(x, torch.zeros(0, dtype=torch.long), accuracy=True)
    (loss.nll.sum() + loss.smooth.sum()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@every_variant
def test_sampled_accuracy_is_of_the_scored_tokens(variant: str) -> None:
    head = build(SPREAD, variant)
    x = features_for(40, DIM, torch.float64, 1)
    best = head.log_probs(x).argmax(dim=-1)
    # The best of all tokens is the best of any of them.
    assert head(x, best, accuracy=True).stats["sampled_accuracy"].eq(1).all()
    worst = head.log_probs(x).argmin(dim=-1)
    assert head(x, worst, accuracy=True).stats["sampled_accuracy"].eq(0).all()
    assert "accuracy" in head.eval()(x, best, accuracy=True).stats


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gold_token_far_below_its_rivals_has_a_finite_loss(dtype: torch.dtype) -> None:
    """Its share of the group is too small for a number of this type; its logit is not."""
    head = build(SPREAD, groups=3).to(dtype)
    target = torch.arange(len(SPREAD))
    x = 400 * features_for(len(SPREAD), DIM, dtype, 1).requires_grad_()
    head.set_num_updates(1)
    sampled = samples_of(head, len(SPREAD))
    loss = head(x, target)
    loss.nll.sum().backward()
    expected, _ = dense_estimate(head, x.detach(), target, head.table.weight.detach(), sampled)
    assert float(expected.max()) > 800
    torch.testing.assert_close(loss.nll.double(), expected.double(), atol=1e-2, rtol=1e-5)
    assert head.table.linear.weight.grad is not None and head.table.linear.weight.grad.isfinite().all()


# ---- cost


def test_a_step_makes_no_table_of_logits_and_one_gradient_of_the_weights() -> None:
    book = Codebook((64, 64), torch.randperm(4096, generator=torch.Generator().manual_seed(0)))
    head = SamplingHead(16, book, groups=4)
    head.set_num_updates(1)
    x = features_for(2048, 16, torch.float32, 0).requires_grad_()
    target = targets_for(book, 2048, 0)
    largest = Largest(count_from=4096 * 16)
    with largest:
        loss = head(x, target)
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    # The logits are made a chunk of groups at a time; the table would be N x 4096.
    assert largest.numel <= 2048 * 64
    made = Largest(count_from=4096 * 16)
    narrow = features_for(64, 16, torch.float32, 0).requires_grad_()
    with made:
        loss = head(narrow, target[:64])
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    assert made.count <= 2, "a V x d tensor for each group?"


# ---- dtypes


@the_papers_variants
def test_half_precision_is_close_and_arithmetic_is_single(variant: str) -> None:
    exact = build(SPREAD, variant, groups=2)
    half = copy.deepcopy(exact).to(torch.bfloat16)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    losses = []
    for head, features in ((exact, x), (half, x.bfloat16())):
        head.set_num_updates(2)
        loss = head(features, target)
        loss.nll.sum().backward()
        losses.append(loss)
    assert losses[1].nll.dtype == losses[1].smooth.dtype == torch.float32
    torch.testing.assert_close(losses[1].nll.double(), losses[0].nll, atol=0.1, rtol=0.05)
    torch.testing.assert_close(losses[1].smooth.double(), losses[0].smooth, atol=0.1, rtol=0.05)
    weight = half.table.linear.weight
    assert weight.grad is not None and weight.grad.dtype == torch.bfloat16
    torch.testing.assert_close(weight.grad.double(), exact.table.linear.weight.grad, atol=0.1, rtol=0.1)


def test_autocast() -> None:
    head = build(SPREAD, groups=2).float()
    head.set_num_updates(2)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float32, 1)
    plain = head(x, target).nll
    for features in (x, x.bfloat16()):
        with torch.autocast("cpu", torch.bfloat16):
            nll = head(features, target).nll
        nll.sum().backward()
        assert nll.dtype == torch.float32
        torch.testing.assert_close(nll, plain, atol=0.1, rtol=0.05)
