"""Groups drawn for each token by what they are predicted to hold."""

from __future__ import annotations

import math
from argparse import Namespace

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SamplingHead
from mhe_fairseq.heads.sampling.group_sample import inclusion_probabilities
from mhe_fairseq.heads.sampling.predicted import among, capped, chances, systematic_rows
from mhe_fairseq.models.options import HeadOptions
from tests.heads.oracle import features_for, softmax_oracle, targets_for
from tests.heads.sampling.cases import DIM, SPREAD, build, groups_of

BOOK = Codebook((16, 8), vocab_size=120)


def trained(book: Codebook = BOOK, groups: int = 3, seed: int = 1) -> SamplingHead:
    """With a predictor that says something, if nothing right."""
    head = build(book, "predicted", groups, seed).train()
    assert head.predictor is not None
    torch.nn.init.normal_(head.predictor.weight, std=0.5)
    return head


def estimate(head: SamplingHead, x: Tensor, target: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """nll and smooth written out over an N x V table of logits."""
    assert head.predictor is not None
    digits = head.codebook.digits(torch.arange(len(head.codebook)))[:, 0].unique()
    inclusion = chances(head.predictor(x, digits), head._share, head.groups)
    drawn = among(systematic_rows(inclusion, head.groups, head._generator()), inclusion.size(1))
    group = groups_of(head.codebook)
    is_gold = group == group[target].unsqueeze(1)
    log_weight = (-inclusion.log()).masked_fill(~drawn, -torch.inf)[:, group]
    logits = x @ weight.T
    log_z = (logits + torch.where(is_gold, 0.0, log_weight)).logsumexp(1)
    return log_z - logits.gather(1, target.unsqueeze(1)).squeeze(1), log_z - logits.mean(1)


# ---- what is drawn


def test_probabilities_of_rows_are_those_of_one() -> None:
    share = torch.rand(7, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 4 + 1e-4
    found = capped(share, 5)
    for row, own in zip(found, share, strict=True):
        torch.testing.assert_close(row, inclusion_probabilities(own, 5))
    assert bool((found == 1).any()) and bool((found < 0.1).any())


def test_a_group_is_drawn_with_its_probability() -> None:
    """In samples of one size; over many orders and shifts."""
    generator = torch.Generator().manual_seed(1)
    share = torch.rand(1, 9, generator=generator, dtype=torch.float64) ** 3 + 1e-3
    inclusion = capped(share, 4).expand(500, -1)
    mean = torch.zeros(9, dtype=torch.float64)
    for _ in range(40):
        drawn = among(systematic_rows(inclusion, 4, generator), 9)
        assert drawn.sum(1).tolist() == [4] * 500
        mean += drawn.double().mean(0) / 40
    torch.testing.assert_close(mean, inclusion[0], atol=0.02, rtol=0)


def test_what_is_predicted_is_drawn_and_the_rest_is_not_forgotten() -> None:
    prior = torch.full((10,), 0.1, dtype=torch.float64)
    log_share = torch.full((2, 10), 1e-9).log()
    log_share[0, 3] = log_share[1, 7] = 0.0
    found = chances(log_share, prior, 2)
    assert found[0, 3] == found[1, 7] == 1.0
    assert float(found.min()) > 0.1


# ---- the estimate


@pytest.mark.parametrize("book", [SPREAD, BOOK], ids=["spread", "dictionary"])
def test_the_normaliser_has_no_bias(book: Codebook) -> None:
    """The mean over draws of Z_hat is Z, of a token in and one outside of the likely groups."""
    head = trained(book, groups=2)
    x, target = features_for(2, DIM, torch.float64, 3), targets_for(book, 2, 3)
    count = 600
    rows, golds = x.repeat_interleave(count, 0), target.repeat_interleave(count)
    exact = (x @ head.table.weight.T).logsumexp(1)
    ratios = []
    with torch.no_grad():
        for update in range(20):
            head.set_num_updates(update)
            gold = (rows * head.table.weight[golds]).sum(1)
            log_z = head(rows, golds).nll + gold
            ratios.append((log_z.view(2, count) - exact.unsqueeze(1)).exp())
    ratio = torch.cat(ratios, dim=1)
    # Draws of one update share an order of groups, so their mean over updates is what varies.
    means = torch.stack([each.mean(1) for each in ratios], dim=1)
    error = means.std(1) / math.sqrt(means.size(1)) + ratio.std(1) / math.sqrt(ratio.size(1))
    assert bool((ratio.std(1) > 0.01).any()), "nothing was drawn at random"
    assert bool(((ratio.mean(1) - 1).abs() <= 4 * error + 1e-9).all()), (ratio.mean(1), error)


@pytest.mark.parametrize("book", [SPREAD, BOOK], ids=["spread", "dictionary"])
def test_the_loss_and_its_gradients_are_those_written_out(book: Codebook) -> None:
    head = trained(book, groups=2)
    head.set_num_updates(5)
    x, target = features_for(23, DIM, torch.float64, 1).requires_grad_(), targets_for(book, 23, 1)
    loss = head(x, target, accuracy=True)
    weight = torch.arange(1, 24).double()
    (loss.nll * weight + 0.3 * loss.smooth * weight.flip(0)).sum().backward()
    table = head.table.linear.weight
    grads = [x.grad, table.grad]
    x.grad = table.grad = None
    nll, smooth = estimate(head, x.detach(), target, table)
    torch.testing.assert_close(loss.nll, nll)
    torch.testing.assert_close(loss.smooth, smooth)
    assert head.predictor is not None
    taught = [parameter.grad for parameter in head.predictor.parameters()]
    nll, smooth = estimate(head, x, target, table)
    (nll * weight + 0.3 * smooth * weight.flip(0)).sum().backward()
    torch.testing.assert_close(grads, [x.grad, table.grad])
    assert all(grad is not None and bool(grad.ne(0).any()) for grad in taught)


def test_the_predictor_learns_what_groups_hold() -> None:
    """From samples, the shares of the exact softmax."""
    head = build(BOOK, "predicted", groups=3).train()
    assert head.predictor is not None
    head.table.requires_grad_(False)
    optimiser = torch.optim.Adam(head.predictor.parameters(), lr=0.05)
    x, target = features_for(256, DIM, torch.float64, 2), targets_for(BOOK, 256, 2)
    digits, group = torch.arange(15), groups_of(BOOK)
    share = torch.zeros(256, 15).double().index_add_(1, group, softmax_oracle(head, x).exp())

    def divergence() -> float:
        assert head.predictor is not None
        return (share * (share.log() - head.predictor(x, digits))).sum(1).mean().item()

    before = divergence()
    for update in range(120):
        head.set_num_updates(update)
        optimiser.zero_grad()
        head(x, target).nll.sum().backward()
        optimiser.step()
    assert divergence() < 0.5 * before


def test_in_the_exact_end_the_predictor_rests() -> None:
    head = trained()
    head.exact = True
    x, target = features_for(9, DIM, torch.float64, 1), targets_for(BOOK, 9, 1)
    loss = head(x, target)
    expected = softmax_oracle(head, x).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(loss.nll, -expected)
    loss.nll.sum().backward()
    assert head.predictor is not None
    for parameter in head.predictor.parameters():
        assert parameter.grad is not None and not bool(parameter.grad.any())


# ---- state and flags


def test_states_with_and_without_a_predictor() -> None:
    head, other = trained(seed=1), build(BOOK, "shared", 3, seed=2)
    assert head.predictor is not None
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other.table.weight, head.table.weight)
    before = head.predictor.weight.clone()
    head.load_state_dict(build(BOOK, "shared", 3, seed=3).state_dict())
    assert torch.equal(head.predictor.weight, before)


def test_it_is_not_split_over_ranks() -> None:
    args = Namespace(mhe_head="sampling", mhe_sampling="predicted", mhe_shard=True)
    with pytest.raises(
        MHEError, match="--mhe-sampling predicted draws groups for each token, which --mhe-shard"
    ):
        HeadOptions.resolve(args, [f"w{n}" for n in range(100)])
    head = HeadOptions.resolve(
        Namespace(mhe_head="sampling", mhe_sampling="predicted", mhe_groups="4"),
        [f"w{n}" for n in range(100)],
    ).build(DIM, None)
    assert isinstance(head, SamplingHead) and head.groups == 4 and head.predictor is not None
