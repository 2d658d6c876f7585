"""Margins: the dense formula, its slope, what training has and evaluation has not, and bad input."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import Margin, SoftmaxHead
from mhe_fairseq.heads.margin import along_spheres_, inverse_lengths, unit
from tests.drawn import examples
from tests.heads.oracle import codebooks, features_for, softmax_logits, targets_for, weighed

DIM = 6
BOOK = Codebook((5, 8), vocab_size=37)
every_kind = pytest.mark.parametrize("kind", ["arcface", "cosface"])


def build(margin: Margin, book: Codebook = BOOK, chunk: int = 0, seed: int = 1) -> SoftmaxHead:
    torch.manual_seed(seed)
    head = SoftmaxHead(DIM, book, chunk=chunk, margin=margin)
    torch.nn.init.normal_(head.table.weight)
    return head.double()


# ---- the score of a target


@every_kind
def test_scores_by_hand(kind: str) -> None:
    margin = Margin(kind, scale=10.0, margin=0.5)
    angles = torch.tensor([0.0, 0.3, 1.5, 2.6, 2.7, math.pi], dtype=torch.float64)
    found = margin.target(10 * angles.cos())
    if kind == "cosface":
        expected = 10 * (angles.cos() - 0.5)
    else:
        near = (angles + 0.5).cos()
        beyond = angles.cos() - 0.5 * math.sin(0.5)
        # 2.7 and pi are beyond pi - 0.5 = 2.64.
        expected = 10 * torch.cat([near[:4], beyond[4:]])
    # The sine of no angle is taken to be 0.001.
    torch.testing.assert_close(found, expected, atol=5.1e-3, rtol=0)
    torch.testing.assert_close(found[1:5], expected[1:5])


@every_kind
@given(size=st.floats(0, math.pi), scale=st.floats(0.1, 100), cosine=st.floats(-1, 1))
def test_the_slope_is_the_derivative(kind: str, size: float, scale: float, cosine: float) -> None:
    margin = Margin(kind, scale, size)
    score = torch.tensor([cosine * scale], dtype=torch.float64, requires_grad=True)
    value = margin.target(score)
    (wanted,) = torch.autograd.grad(value.sum(), score)
    bent = margin.bend(score)
    assert not bent.value.requires_grad and not bent.slope.requires_grad
    torch.testing.assert_close(bent.value, value.detach())
    torch.testing.assert_close(bent.slope, wanted)
    assert float(value.detach() - score.detach()) <= 1e-3 * scale  # harder, where no sine is set to 0.001


def test_a_margin_of_nothing_is_none() -> None:
    score = torch.linspace(-3, 3, 7)
    for kind in ("arcface", "cosface"):
        assert torch.equal(Margin(kind, 3.0, 0.0).target(score), score)


def test_directions_and_their_gradient() -> None:
    rows = features_for(4, DIM, torch.float64, 1)
    rows[2] = 0.0
    rows.requires_grad_()
    gradient = features_for(4, DIM, torch.float64, 2)
    found = unit(rows)
    torch.testing.assert_close(found.norm(dim=1), torch.tensor([1.0, 1.0, 0.0, 1.0]).double())
    (wanted,) = torch.autograd.grad(found, rows, gradient)
    assert not wanted[2].any()
    inverse = inverse_lengths(rows.detach())
    by_hand = gradient * inverse.unsqueeze(1)
    along_spheres_(by_hand, rows.detach(), inverse)
    torch.testing.assert_close(by_hand, wanted)


# ---- a dense head


@every_kind
@pytest.mark.parametrize("chunk", [0, 3])
@examples(30)
@given(
    book=codebooks(max_vocab=60),
    count=st.sampled_from([0, 1, 2, 9]),
    smoothing=st.booleans(),
    size=st.floats(0, 1.5),
    seed=st.integers(0, 99),
)
def test_the_loss_and_its_gradients_are_those_written_out(
    kind: str, chunk: int, book: Codebook, count: int, smoothing: bool, size: float, seed: int
) -> None:
    head = build(Margin(kind, 5.0, size), book, chunk, seed)
    x, y = features_for(count, DIM, torch.float64, seed).requires_grad_(), targets_for(book, count, seed)
    z, weight = x.detach().clone().requires_grad_(), head.table.weight.detach().clone().requires_grad_()

    loss = head(x, y, smoothing=smoothing)
    log_p = softmax_logits(head, z, weight, y).log_softmax(-1)
    nll, smooth = -log_p.gather(1, y.unsqueeze(1)).squeeze(1), -log_p.mean(1)
    torch.testing.assert_close(loss.nll, nll)
    assert (loss.smooth is None) is not smoothing
    if smoothing:
        torch.testing.assert_close(loss.smooth, smooth)
    weighed(loss.nll, loss.smooth).backward()
    weighed(nll, smooth if smoothing else None).backward()
    torch.testing.assert_close(x.grad, z.grad, atol=1e-9, rtol=1e-7)
    torch.testing.assert_close(head.table.weight.grad, weight.grad, atol=1e-9, rtol=1e-7)


def test_evaluation_has_no_margin() -> None:
    head = build(Margin(scale=5.0))
    x, y = features_for(7, DIM, torch.float64, 3), targets_for(BOOK, 7, 3)
    expected = softmax_logits(head, x, head.table.weight).log_softmax(-1)
    picked = expected.gather(1, y.unsqueeze(1)).squeeze(1)
    assert (head(x, y).nll > -picked).all()
    for training in (True, False):
        head.train(training)
        torch.testing.assert_close(head.log_prob(x, y), picked)
        torch.testing.assert_close(head.log_probs(x), expected)
        torch.testing.assert_close(head.topk(x, 3)[0], expected.topk(3)[0])
    torch.testing.assert_close(head(x, y).nll, -picked)
    # Right or not is without the margin in training too.
    best = expected.argmax(1)
    assert head.train()(x, best, accuracy=True).stats["accuracy"].all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_types_are_close_and_the_loss_is_single(dtype: torch.dtype) -> None:
    exact = build(Margin(scale=8.0))
    head = build(Margin(scale=8.0)).to(dtype)
    x, y = features_for(9, DIM, torch.float64, 1), targets_for(BOOK, 9, 1)
    losses, tolerance = [], 1e-4 if dtype == torch.float32 else 0.2
    for each, features in ((exact, x), (head, x.to(dtype))):
        loss = each(features, y)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        losses.append(loss)
    assert losses[1].nll.dtype == losses[1].smooth.dtype == torch.float32
    torch.testing.assert_close(losses[1].nll.double(), losses[0].nll, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(losses[1].smooth.double(), losses[0].smooth, atol=tolerance, rtol=tolerance)
    assert head.table.weight.grad is not None and head.table.weight.grad.dtype == dtype
    torch.testing.assert_close(
        head.table.weight.grad.double(), exact.table.weight.grad, atol=tolerance, rtol=tolerance
    )


def test_features_without_a_direction_and_targets_straight_ahead() -> None:
    """Cosines of 0 and 1: a finite loss, finite gradients."""
    head = build(Margin())
    y = torch.tensor([4, 9])
    x = torch.stack([torch.zeros(DIM).double(), head.table.weight[9].detach()]).float().requires_grad_()
    loss = head.float()(x, y)
    (loss.nll.sum() + loss.smooth.sum()).backward()
    assert loss.nll.isfinite().all() and x.grad is not None and x.grad.isfinite().all()
    assert head.table.weight.grad is not None and head.table.weight.grad.isfinite().all()
    assert not x.grad[0].any()


# ---- state, bad input


def test_weights_for_other_scores_are_refused() -> None:
    plain, head, other = SoftmaxHead(DIM, BOOK), build(Margin()), build(Margin(scale=30.0))
    with pytest.raises(
        MHEError, match=r"cosines times 64 .* head's are products; .*margin=Margin\(scale=64\)"
    ):
        plain.load_state_dict(head.state_dict())
    with pytest.raises(MHEError, match=r"are products .* cosines times 64; make it with margin=None"):
        head.load_state_dict(plain.state_dict())
    with pytest.raises(MHEError, match=r"cosines times 30 .* cosines times 64"):
        head.load_state_dict(other.state_dict())
    # The margin itself may change from one training to the next; half precision rounds a scale.
    build(Margin("cosface", 30.1)).load_state_dict(build(Margin(scale=30.1)).half().state_dict())
    head.load_state_dict({}, strict=False)
    assert "cosine_scale" not in plain.state_dict()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sphereface",), "one of arcface, cosface; got 'sphereface'"),
        (("arcface", 0.0), "scale is a number above 0, such as 64; got 0"),
        (("arcface", math.nan), "got nan"),
        (("arcface", 64.0, 4.0), "margin of arcface is 0 to pi, an angle, such as 0.5; got 4.0"),
        (("cosface", 64.0, -0.1), "margin of cosface is 0 or more such as 0.35; got -0.1"),
        (("cosface", 64.0, math.nan), "got nan"),
    ],
)
def test_bad_arguments(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(MHEError, match=message):
        Margin(*arguments)  # type: ignore[arg-type]
