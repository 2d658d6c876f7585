"""When a training's exact end begins, and the loss from there on."""

from __future__ import annotations

import functools
from fractions import Fraction

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.sampling.exact_end import ExactEnd
from tests.heads.oracle import features_for, softmax_oracle, targets_for
from tests.heads.sampling.cases import DIM, SPREAD, Largest, build, every_variant

# ---- when


def exact_updates(end: ExactEnd, max_update: int, max_epoch: int = 0) -> int:
    """How many of a training's updates are exact: its last ones."""
    found = [
        end.includes(updates, max_update=max_update, max_epoch=max_epoch) for updates in range(max_update)
    ]
    assert found == sorted(found)
    return sum(found)


@pytest.mark.parametrize(
    ("share", "updates", "expected"),
    # A tenth of 30 in binary is more than 3; a part of an update is one.
    [
        (0.1, 10, 1),
        (0.1, 30, 3),
        (0.1, 2000, 200),
        (0.05, 2000, 100),
        (0.0, 10, 0),
        (1.0, 10, 10),
        (0.7, 10, 7),
    ]
    + [(0.01, 10, 1), (0.5, 7, 4), (1e-5, 3, 1)],
)
def test_a_share_of_the_updates(share: float, updates: int, expected: int) -> None:
    assert exact_updates(ExactEnd(share), max_update=updates) == expected


def test_all_after_a_number() -> None:
    assert exact_updates(ExactEnd(after=7), max_update=10) == 3
    assert exact_updates(ExactEnd(after=0), max_update=10) == 10
    assert exact_updates(ExactEnd(after=10), max_update=10) == 0
    # Nothing else is asked.
    assert exact_updates(ExactEnd(1.0, after=9), max_update=10, max_epoch=1) == 1


def test_a_share_of_the_epochs_and_the_earlier_of_two_ends() -> None:
    """Three epochs of four updates."""

    def exact(share: float, **ends: int) -> int:
        return sum(
            ExactEnd(share).includes(updates, Fraction(updates + 1, 4), **ends) for updates in range(12)
        )

    assert exact(0.5, max_epoch=3) == 6
    assert exact(0.1, max_epoch=3) == 2
    assert exact(0.0, max_epoch=3) == 0
    assert exact(0.5, max_epoch=3, max_update=100) == 6
    assert exact(0.25, max_epoch=100, max_update=12) == 3
    assert not ExactEnd(0.5).includes(11, None, max_epoch=3)


def test_what_is_said_of_it() -> None:
    assert ExactEnd(0.1).describe(max_update=2500) == "the last 10% of 2,500 updates"
    assert ExactEnd(0.125).describe(max_update=8, max_epoch=3) == "the last 12.5% of 8 updates or 3 epochs"
    assert ExactEnd(after=1000).describe(max_update=8) == "those after the first 1,000"


# ---- the loss


@every_variant
@pytest.mark.parametrize("chunk", [0, 2, 512])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_loss_and_its_gradients_are_the_softmaxs(variant: str, chunk: int, dtype: torch.dtype) -> None:
    head = build(SPREAD, variant).to(dtype).train()
    head.exact, head.chunk = True, chunk
    x, target = features_for(7, DIM, dtype, 1).requires_grad_(), targets_for(SPREAD, 7, 1)
    loss = head(x, target, accuracy=True)
    weight = torch.arange(1, 8).to(dtype)
    (loss.nll * weight + 0.3 * loss.smooth * weight.flip(0)).sum().backward()
    table = head.table.linear.weight
    grads = [x.grad, table.grad]
    x.grad = table.grad = None
    log_probs = softmax_oracle(head, x)
    nll, smooth = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1), -log_probs.mean(dim=1)
    (nll * weight + 0.3 * smooth * weight.flip(0)).sum().backward()
    tolerance = 1e-4 if dtype == torch.float32 else 1e-9
    close = functools.partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance)
    close(loss.nll, nll.to(dtype))
    close(loss.smooth, smooth.to(dtype))
    close(grads, [x.grad, table.grad])
    # As of a sample of all groups.
    assert loss.stats.keys() == {"sampled_nll", "sampled_accuracy"}
    torch.testing.assert_close(loss.stats["sampled_nll"], loss.nll.detach())
    assert loss.stats["sampled_accuracy"].tolist() == log_probs.argmax(dim=1).eq(target).to(dtype).tolist()


def test_before_the_end_the_loss_is_the_estimate() -> None:
    head = build(Codebook((16, 8)), groups=2).train()
    x, target = features_for(6, DIM, torch.float64, 0), targets_for(head.codebook, 6, 0)
    head.set_num_updates(3)
    before = head(x, target).nll
    head.exact = True
    exact = head(x, target).nll
    assert (exact - before).abs().max() > 1e-3
    head.exact = False
    assert torch.equal(head(x, target).nll, before)
    assert torch.equal(head.eval()(x, target).nll, exact)


def test_a_few_rows_of_logits_are_held_in_training() -> None:
    book = Codebook((32, 32))
    head = build(book, groups=2).train()
    head.exact, head.chunk = True, 64
    x = features_for(4096, DIM, torch.float64, 0).requires_grad_()
    largest = Largest()
    with largest:
        loss = head(x, targets_for(book, 4096, 0), accuracy=True)
        (loss.nll + loss.smooth).sum().backward()
    assert largest.numel <= 64 * 1024
