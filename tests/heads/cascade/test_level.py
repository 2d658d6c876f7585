"""One digit of a cascade: what rows a step touches, smoothing on the gold prefix, prefixes without tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.cascade.level import Level
from tests.heads.cascade.cases import (
    DIM,
    HOLED,
    both_depths,
    build,
    counts,
    every_kind,
    gradients,
    seeds,
    small_books,
)
from tests.heads.oracle import cascade_level_log_probs, features_for, targets_for


def make_level() -> Level:
    """Three prefixes of four digits: two of them possible, none (the prefix has no tokens), all four."""
    torch.manual_seed(1)
    level = Level(3, 4, DIM).double()
    counts = torch.tensor([[2, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    level.set_tokens(counts, torch.full((12,), -1))
    return level


def test_digits_without_tokens_have_no_probability() -> None:
    level, x = make_level(), features_for(5, DIM, torch.float64, 1)
    logits = torch.einsum("nd,pld->npl", x, level.table)
    logits[:, 0, [1, 3]] = -torch.inf
    everything = level.all_log_softmax(x)
    # The prefix without tokens is not 0 / 0: nothing may become NaN.
    torch.testing.assert_close(everything, logits.log_softmax(dim=-1))
    rows, prefix = torch.tensor([4, 0, 0, 2]), torch.tensor([2, 0, 1, 0])
    torch.testing.assert_close(level.log_softmax(x, prefix, rows), everything[rows, prefix])
    raw = torch.einsum("rd,rld->rl", x[rows], level.table[prefix])
    torch.testing.assert_close(level.logits(x, prefix, rows), raw)


def test_shares_are_of_the_tokens_below() -> None:
    share = make_level().share(torch.arange(3), torch.float64)
    expected = torch.tensor([[2, 0, 1, 0], [0, 0, 0, 0], [0.75, 0.75, 0.75, 0.75]]).double() / 3
    torch.testing.assert_close(share, expected)


def test_the_sampled_smoothing_term_is_the_mean_over_each_rows_prefixes() -> None:
    level, x = make_level(), features_for(5, DIM, torch.float64, 1)
    prefix, gold = torch.tensor([0, 2, 2, 0, 0]), torch.tensor([2, 3, 0, 0, 2])
    sampled = torch.tensor([[2, 0, 2], [0, 0, 0], [2, 2, 2], [0, 2, 0], [2, 0, 0]])
    loss = level.loss(x, prefix, gold, sampled=sampled, accuracy=True)
    log_probs = level.all_log_softmax(x)
    of_prefix = -(log_probs.masked_fill(log_probs == -torch.inf, 0.0) * level.share(torch.arange(3), x.dtype))
    of_prefix = of_prefix.sum(dim=-1)
    torch.testing.assert_close(loss.smooth, of_prefix.gather(1, sampled).mean(dim=1))
    picked = log_probs[torch.arange(5), prefix]
    torch.testing.assert_close(loss.nll, -picked.gather(1, gold.unsqueeze(1)).squeeze(1))
    assert loss.correct is not None
    assert loss.correct.tolist() == picked.argmax(dim=1).eq(gold).double().tolist()
    plain = level.loss(x, prefix, gold)
    assert plain.smooth is None and plain.correct is None


@every_kind
@given(book=small_books, count=counts, seed=seeds)
def test_per_level_smoothing_is_that_of_the_gold_prefixes(
    kind: str, book: Codebook, count: int, seed: int
) -> None:
    _, head = build(kind, book, seed=seed, smoothing_form="per-level")
    features, target = features_for(count, DIM, torch.float64, seed), targets_for(book, count, seed)
    levels = cascade_level_log_probs(head, features)
    digits = book.digits(torch.arange(len(book)))
    expected = -levels[0].mean(dim=-1)
    for h in range(1, book.heads):
        for i, token in enumerate(target):
            inside = (digits[:, :h] == digits[token, :h]).all(dim=-1)
            expected[i] = expected[i] - levels[h][i, inside].mean()
    torch.testing.assert_close(head(features, target).smooth, expected)


@both_depths
@pytest.mark.parametrize("kind", ["bottleneck", "tied"])
def test_gradients_of_per_level_smoothing_by_finite_differences(kind: str, book: Codebook) -> None:
    model, head = build(kind, book, smoothing_form="per-level")
    target = torch.tensor([0, 5, 3, 0])

    def loss(features: Tensor, *_: Tensor) -> Tensor:
        nll, smooth, _stats = head(features, target)
        return nll + 0.3 * smooth

    features = features_for(4, DIM, torch.float64, 0).requires_grad_()
    # gradcheck moves its inputs in place, so the model's own parameters can be its inputs.
    assert torch.autograd.gradcheck(loss, (features, *model.parameters()))


def test_rows_of_other_groups_and_holes_get_zeros() -> None:
    model, head = build("plain", HOLED)
    head(features_for(5, DIM, torch.float64, 1), torch.full((5,), 3), smoothing=False).nll.sum().backward()
    touched = gradients(model)["head.local.table"].any(dim=-1)
    tokens = HOLED.token_of_slot.view(4, 3)
    assert touched.tolist() == [[False] * 3] * 2 + [(tokens[2] >= 0).tolist()] + [[False] * 3]
