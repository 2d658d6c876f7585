"""Rows of a softmax, fitted to a head: against least squares of torch's own, and heads that are a softmax."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SoftmaxHead
from mhe_fairseq.models.fit_softmax import FLOOR, HELD_BACK, RIDGE, FittedRows, divergence, fit_rows
from tests.models.test_fit_groups import DIM, TOKENS, quiet
from tests.models.test_fit_groups import (
    codebook as codebook,  # 5 x 8 slots for 30 tokens, the last group empty
)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(600, DIM, generator=torch.Generator().manual_seed(3)) + 0.3


def trained(head: OutputHead) -> OutputHead:
    """A head whose weights are as large as a trained one's."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for weights in head.parameters():
            weights.copy_(0.5 * torch.randn(weights.shape, generator=generator))
    return head.eval()


def fitted(head: OutputHead, features: Tensor, *sizes: int) -> FittedRows:
    book = head.codebook
    group = book.digits(torch.arange(len(book)))[:, 0]
    batches = features.split(list(sizes) or len(features))
    return fit_rows(batches, head.log_probs, group, book.lengths[0], quiet)


@pytest.mark.parametrize("kind", [SoftmaxHead, ProductHead])
def test_a_head_that_is_a_softmax(kind: type[OutputHead], codebook: Codebook, features: Tensor) -> None:
    """The rows of a product head's tokens are sums, and their softmax over the tokens is the head's."""
    # Without biases: features here do not span a constant.
    head = trained(kind(DIM, codebook))
    for name, weights in head.named_parameters():
        if name.endswith("bias"):
            weights.data.zero_()
    made = fitted(head, features)
    fresh = torch.randn(50, DIM, generator=torch.Generator().manual_seed(5))
    found = (fresh @ made.rows.T).log_softmax(dim=-1)
    # The ridge, and fp32.
    torch.testing.assert_close(found, head.log_probs(fresh), atol=2e-3, rtol=1e-3)
    assert made.divergence < 1e-6 and made.tokens == 600 - -(-600 // HELD_BACK)


def test_a_cascade_against_least_squares(codebook: Codebook, features: Tensor) -> None:
    """Token by token, in float64, on all features at once."""
    head = trained(CascadeHead(DIM, codebook))
    made = fitted(head, features, 100, 1, 255, 244)
    used = torch.cat(
        [part[torch.arange(len(part)) % HELD_BACK > 0] for part in features.split([100, 1, 255, 244])]
    )
    assert made.tokens == len(used)
    x, log_p = used.double(), head.log_probs(used).double()
    wanted = log_p - log_p.mean(dim=1, keepdim=True)
    for token, slot in enumerate(codebook.slots.tolist()):
        own = [other for other, each in enumerate(codebook.slots.tolist()) if each // 8 == slot // 8]
        weight = (log_p[:, own].exp().sum(dim=1).sqrt() + FLOOR).sqrt().unsqueeze(1)
        ridge = RIDGE * (weight * x).square().sum(dim=0).mean()
        left = torch.cat([weight * x, ridge.sqrt() * torch.eye(DIM).double()])
        right = torch.cat([weight.squeeze(1) * wanted[:, token], torch.zeros(DIM).double()])
        row = torch.linalg.lstsq(left, right.unsqueeze(1)).solution.squeeze(1)
        torch.testing.assert_close(made.rows[token].double(), row, atol=1e-4, rtol=1e-4)


def test_inside_a_group_a_cascade_is_kept(codebook: Codebook, features: Tensor) -> None:
    head = trained(CascadeHead(DIM, codebook))
    made = fitted(head, features)
    group = codebook.slots.div(8, rounding_mode="floor")
    is_of = torch.nn.functional.one_hot(group, 5).float()
    both = [(features @ made.rows.T).log_softmax(dim=-1), head.log_probs(features)]
    found, wanted = (each - ((each.exp() @ is_of).clamp(min=1e-30).log() @ is_of.T) for each in both)
    torch.testing.assert_close(found, wanted, atol=2e-3, rtol=1e-3)


def test_divergence_is_that_of_probabilities(codebook: Codebook, features: Tensor) -> None:
    head = trained(CascadeHead(DIM, codebook))
    rows = torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(6))
    p = head.log_probs(features).double().exp()
    q = (features @ rows.T).double().softmax(dim=-1)
    expected = float((p * (p / q).log()).sum(dim=1).mean())
    assert divergence(features, head.log_probs, rows) == pytest.approx(expected, rel=1e-4)
    assert divergence(features[:0], head.log_probs, rows) == 0.0


def test_the_divergence_is_of_what_was_held_back(codebook: Codebook, features: Tensor) -> None:
    head = trained(CascadeHead(DIM, codebook))
    made = fitted(head, features)
    held = features[::HELD_BACK]
    assert made.divergence == pytest.approx(divergence(held, head.log_probs, made.rows), rel=1e-5)
    assert 0 < made.divergence < 0.2


def test_several_parts_are_one(codebook: Codebook, features: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where V-wide rows are too many to be held at once."""
    head = trained(CascadeHead(DIM, codebook))
    whole = fitted(head, features)
    monkeypatch.setattr("mhe_fairseq.models.fit_softmax._WIDE", 7 * TOKENS)
    torch.testing.assert_close(fitted(head, features).rows, whole.rows, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_features(count: int, codebook: Codebook, features: Tensor) -> None:
    with pytest.raises(ValueError, match="two tokens at least"):
        fitted(trained(CascadeHead(DIM, codebook)), features[:count])


def test_groups_that_no_feature_is_of(codebook: Codebook) -> None:
    """The ridge keeps the equations of fewer features than dimensions solvable."""
    head = trained(CascadeHead(DIM, codebook))
    few = torch.randn(3, DIM, generator=torch.Generator().manual_seed(7))
    assert fitted(head, few).rows.isfinite().all()
