"""The group head of a cascade, fitted to a softmax's probabilities of groups."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead
from mhe_fairseq.models.fit_groups import (
    Fitted,
    Softmax,
    divergence,
    first_prototypes,
    fit,
    gather,
    group_log_probs,
)

TOKENS, DIM = 30, 8


def quiet(stage: str, done: int, total: int) -> None:
    """Progress that nobody sees."""


@pytest.fixture
def codebook() -> Codebook:
    """5 x 8 slots for 30 tokens; the last group is empty and others have holes."""
    slots = torch.randperm(32, generator=torch.Generator().manual_seed(1))[:TOKENS]
    return Codebook((5, 8), slots)


@pytest.fixture
def table() -> Tensor:
    return 1.5 * torch.randn(TOKENS, DIM, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def features() -> Tensor:
    return torch.randn(400, DIM, generator=torch.Generator().manual_seed(3)) + 0.3


def groups_of(probabilities: Tensor, codebook: Codebook) -> Tensor:
    """(N, V) -> (N, L_1), token by token."""
    summed = torch.zeros(len(probabilities), codebook.lengths[0])
    for token, slot in enumerate(codebook.slots.tolist()):
        summed[:, slot // codebook.lengths[1]] += probabilities[:, token]
    return summed


def fitted(table: Tensor, features: Tensor, codebook: Codebook, m: int, seed: int = 1) -> Fitted:
    softmax = Softmax.of(table, codebook)
    found, masses = gather([features], softmax, len(features), quiet)
    return fit(softmax, found, masses, m, seed, quiet, passes=40, batch=50, rate=2e-2)


def test_the_mass_of_groups_is_that_of_their_tokens(
    table: Tensor, features: Tensor, codebook: Codebook
) -> None:
    softmax = Softmax.of(table, codebook)
    expected = groups_of((features @ table.T).softmax(dim=-1), codebook)
    torch.testing.assert_close(softmax.log_groups(features).exp(), expected)
    assert bool((softmax.log_groups(features)[:, 4] == -torch.inf).all())
    frequencies = softmax.frequencies(features).flatten()[codebook.slots]
    torch.testing.assert_close(frequencies, (features @ table.T).softmax(dim=-1).mean(dim=0))


def test_features_are_gathered_until_there_are_enough(
    table: Tensor, features: Tensor, codebook: Codebook
) -> None:
    told: list[tuple[str, int, int]] = []
    taken = []

    def batches() -> Iterator[Tensor]:
        for part in features.split(60):
            taken.append(len(part))
            yield part

    softmax = Softmax.of(table, codebook)
    found, masses = gather(batches(), softmax, 100, lambda *each: told.append(each))
    assert torch.equal(found, features[:100]) and taken == [60, 60]
    torch.testing.assert_close(masses, softmax.log_groups(features[:100]))
    assert told == [("features", 60, 100), ("features", 100, 100)]


@torch.no_grad()
def test_a_prototype_for_every_token_is_exact(table: Tensor, features: Tensor, codebook: Codebook) -> None:
    softmax = Softmax.of(table, codebook)
    masses = softmax.log_groups(features)
    rows, bias = first_prototypes(softmax, features, masses, 8)
    is_empty = torch.tensor([False] * 4 + [True])
    found = group_log_probs(features, rows, bias, 8, is_empty)
    assert float(divergence(masses, found)) < 1e-5


def test_more_prototypes_come_nearer(table: Tensor, features: Tensor, codebook: Codebook) -> None:
    softmax = Softmax.of(table, codebook)
    masses = softmax.log_groups(features)
    rows, bias = first_prototypes(softmax, features, masses, 1)
    is_empty = torch.tensor([False] * 4 + [True])
    begun = float(divergence(masses, group_log_probs(features, rows, bias, 1, is_empty)))
    one, three = (fitted(table, features, codebook, m) for m in (1, 3))
    assert three.divergence < 0.7 * one.divergence < 0.7 * begun
    assert one.rows.shape == (5, DIM) and three.rows.shape == (15, DIM)


def test_the_seed_decides(table: Tensor, features: Tensor, codebook: Codebook) -> None:
    first, again, other = (fitted(table, features, codebook, 2, seed) for seed in (1, 1, 2))
    assert torch.equal(first.rows, again.rows) and torch.equal(first.bias, again.bias)
    assert not torch.equal(first.rows, other.rows)


@torch.no_grad()
@pytest.mark.parametrize("prototypes", [1, 3])
def test_a_cascade_reads_the_rows_so(
    prototypes: int, table: Tensor, features: Tensor, codebook: Codebook
) -> None:
    softmax = Softmax.of(table, codebook)
    masses = softmax.log_groups(features)
    rows, bias = first_prototypes(softmax, features, masses, prototypes)
    head = CascadeHead(DIM, codebook, group_prototypes=prototypes)
    head.group.weight.copy_(rows)
    head.group.bias.copy_(bias)
    is_empty = torch.tensor([False] * 4 + [True])
    found = group_log_probs(features, rows, bias, prototypes, is_empty)
    torch.testing.assert_close(head.group_log_probs(features), found)
