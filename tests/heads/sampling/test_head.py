"""SamplingHead beside its estimate: the exact softmax, what is drawn, tied weights, state and bad input."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sampling.head import SamplingHead
from tests.heads.oracle import features_for, targets_for
from tests.heads.sampling.cases import DIM, SPREAD, Largest, build, every_variant

# ---- evaluation: the plain softmax


@every_variant
def test_eval_mode_is_the_softmax(variant: str) -> None:
    head = build(SPREAD, variant).eval()
    x, target = features_for(7, DIM, torch.float64, 1), targets_for(SPREAD, 7, 1)
    expected = torch.log_softmax(x @ head.table.weight.T, dim=-1)
    picked = expected.gather(1, target.unsqueeze(1)).squeeze(1)
    loss = head(x, target)
    torch.testing.assert_close(loss.nll, -picked)
    torch.testing.assert_close(loss.smooth, -expected.mean(dim=1))
    head.train()
    torch.testing.assert_close(head.log_prob(x, target), picked)
    torch.testing.assert_close(head.log_probs(x), expected)


def test_evaluation_holds_a_few_rows_of_logits_only() -> None:
    book = Codebook((32, 32))
    head = build(book, groups=2).eval()
    largest = Largest()
    with torch.no_grad(), largest:
        head(features_for(4096, DIM, torch.float64, 0), targets_for(book, 4096, 0), accuracy=True)
    assert largest.numel <= 4096 * 1024 / 4


# ---- the sample


def test_frequent_tokens_are_sampled_more_and_the_first_group_always() -> None:
    head = SamplingHead(DIM, Codebook((64, 64)), groups=8)
    assert float(head.inclusion[0]) == 1.0
    assert bool((head.inclusion.diff() <= 0).all())
    # Never so rarely that its weight explodes: at least half of equal chances.
    assert float(head.inclusion[-1]) > 0.5 * 8 / 64 * 0.9


def test_frequencies_say_which_groups_are_sampled_more() -> None:
    """Classes as frequent as each other, or the last ones more; also with another codebook's groups."""
    book = Codebook((8, 8))
    equal = SamplingHead(DIM, book, groups=3, frequencies=torch.full((64,), 7))
    torch.testing.assert_close(equal.inclusion, torch.full((8,), 3 / 8).double())
    last = torch.ones(64)
    last[60:] = 100.0
    head = SamplingHead(DIM, book, groups=3, frequencies=last)
    assert float(head.inclusion[7]) == 1.0
    torch.testing.assert_close(head.inclusion[:7], torch.full((7,), 2 / 7).double())
    head.adopt_codebook = True
    backwards = SamplingHead(DIM, Codebook((8, 8), torch.arange(64).flip(0)), groups=3)
    head.load_state_dict(backwards.state_dict())
    assert float(head.inclusion[0]) == 1.0 > float(head.inclusion[7])


def test_the_sample_depends_on_the_update_only() -> None:
    book = Codebook((16, 8))
    x, target = features_for(6, DIM, torch.float64, 0), targets_for(book, 6, 0)
    one, two = build(book, groups=2), build(book, groups=2)
    losses = []
    for update in range(6):
        one.set_num_updates(update)
        torch.rand(update)  # the global generator plays no part
        losses.append(one(x, target).nll.sum().item())
    two.set_num_updates(4)
    assert two(x, target).nll.sum().item() == losses[4]
    assert len(set(losses)) > 3


# ---- training


@pytest.mark.slow
@every_variant
def test_it_learns_what_the_softmax_learns(variant: str) -> None:
    """A deterministic successor for every token: soon certain, in the exact evaluation too."""
    book = Codebook((8, 8), vocab_size=60)
    torch.manual_seed(0)
    table = nn.Embedding(60, 16)
    head = SamplingHead(16, book, groups=2, variant=variant)
    optimiser = torch.optim.Adam([*table.parameters(), *head.parameters()], lr=0.05)
    tokens = torch.arange(60)
    for update in range(150):
        head.set_num_updates(update)
        loss = head(table(tokens), (tokens * 7 + 3) % 60).nll.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss.item() < 0.1
    exact = head.eval()(table(tokens), (tokens * 7 + 3) % 60).nll.mean().item()
    # The own group alone is not told apart from the others, by design: it trains features, not a classifier.
    assert exact < 0.1 or variant == "own"


# ---- tied, state


def test_tied_is_the_same_as_untied_with_the_same_weights() -> None:
    embedding = nn.Embedding(len(SPREAD), DIM, padding_idx=1).double()
    tied, own = build(SPREAD, groups=2, tied=embedding), build(SPREAD, groups=2)
    with torch.no_grad():
        own.table.linear.weight.copy_(embedding.weight)
    target, x = torch.arange(len(SPREAD)), features_for(len(SPREAD), DIM, torch.float64, 1)
    for head in (tied, own):
        head.set_num_updates(5)
        loss = head(x, target)
        (loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    torch.testing.assert_close(embedding.weight.grad, own.table.linear.weight.grad)
    torch.testing.assert_close(tied(x, target).nll, own(x, target).nll)
    torch.testing.assert_close(tied.log_probs(x), own.log_probs(x))
    assert list(tied.state_dict()) == ["codebook_slots", "codebook_lengths"] and not list(tied.parameters())
    assert tied.output_parameters() == 0 and own.output_parameters() == len(SPREAD) * DIM


def test_a_tied_head_follows_the_embedding_of_its_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(len(SPREAD), DIM)
            self.head = SamplingHead(DIM, SPREAD, groups=2, tied=self.embedding)

    model = Model()
    assert sorted(model.state_dict()) == [
        "embedding.weight",
        "head.codebook_lengths",
        "head.codebook_slots",
    ]
    copied = copy.deepcopy(model).double()
    with torch.no_grad():
        copied.embedding.weight.zero_()
    x = features_for(2, DIM, torch.float64, 0)
    uniform = torch.full((2, len(SPREAD)), -math.log(len(SPREAD)), dtype=torch.float64)
    torch.testing.assert_close(copied.head.log_probs(x), uniform)
    assert not torch.allclose(model.head.log_probs(x.float()).double(), uniform)


def test_an_adopted_codebook_changes_the_groups() -> None:
    shuffled = Codebook((4, 4), torch.randperm(16, generator=torch.Generator().manual_seed(1))[:11])
    trained, fresh = build(shuffled, groups=2, seed=1), build(Codebook((4, 4), vocab_size=11), seed=2)
    fresh.adopt_codebook = True
    fresh.groups = 2
    fresh.load_state_dict(trained.state_dict())
    x, target = features_for(6, DIM, torch.float64, 0), targets_for(shuffled, 6, 0)
    for head in (trained, fresh):
        head.set_num_updates(7)
    torch.testing.assert_close(fresh(x, target).nll, trained(x, target).nll)


# ---- bad input


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 0}, r"groups must be 1\.\.3, got 0"),
        ({"groups": 4}, r"groups must be 1\.\.3, got 4"),
        ({"groups": -1}, r"groups must be 1\.\.3, got -1"),
        ({"variant": "union"}, "one of shared, predicted, own, batch; got 'union'"),
        ({"groups": 1, "frequencies": torch.ones(3)}, r"for each of the 11 tokens; got shape \(3,\)"),
        ({"groups": 1, "tied": nn.Embedding(10, DIM)}, r"cannot be tied to an embedding of \(10, 5\)"),
    ],
)
def test_bad_arguments(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(MHEError, match=message):
        SamplingHead(DIM, SPREAD, **arguments)  # type: ignore[arg-type]


def test_one_digit_or_one_group_is_refused() -> None:
    with pytest.raises(MHEError, match="two lengths such as 128,256; got one length, 11"):
        SamplingHead(DIM, Codebook((11,)), groups=1)
    with pytest.raises(MHEError, match="at least two groups of tokens, the codebook has 1"):
        SamplingHead(DIM, Codebook((1, 11)), groups=1)
    # The groups that are empty do not count.
    with pytest.raises(MHEError, match=r"groups must be 1\.\.1, got 2"):
        SamplingHead(DIM, Codebook((4, 4), torch.tensor([0, 1, 2, 12])), groups=2)
    for variant in ("own", "batch"):
        SamplingHead(DIM, Codebook((2, 8)), variant=variant)  # groups play no part


@pytest.mark.parametrize(
    ("lengths", "drawn"),
    # An eighth of the tokens; 2,048 where that is less; 8,192 where it is more; all groups but one.
    [((128, 256), 16), ((1024, 64), 128), ((64, 128), 16), ((512, 512), 16), ((16, 8), 15), ((2, 8), 1)],
)
def test_groups_that_are_drawn_by_default(lengths: tuple[int, int], drawn: int) -> None:
    assert SamplingHead(DIM, Codebook(lengths)).groups == drawn
