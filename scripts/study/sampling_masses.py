"""What the groups of a codebook hold of a token, exactly and predicted: for sampling_bias.py."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_fairseq.heads import SamplingHead


@dataclass(frozen=True)
class Masses:
    """Features and what a codebook's groups hold of them.

    Attributes:
        head: with the codebook, and the table.
        features, target: (N, d), (N,).
        log_mass: (N, L) log Z_g.
        gold: (N,) the targets' groups.
    """

    head: SamplingHead
    features: Tensor
    target: Tensor
    log_mass: Tensor
    gold: Tensor

    @classmethod
    def of(cls, head: SamplingHead, features: Tensor, target: Tensor) -> Masses:
        mass = [features @ head.table.weight[tokens].T for tokens in groups_of(head)]
        log_mass = torch.stack([each.logsumexp(1) for each in mass], dim=1)
        return cls(head, features, target, log_mass, head.group_of_token[target])


def groups_of(head: SamplingHead) -> list[Tensor]:
    """The tokens of each group."""
    return list(head.tokens_by_group.split(head._sizes.tolist()))


def wide(x: Tensor) -> Tensor:
    """With a 1. Shape: (N, d) -> (N, d + 1)."""
    return torch.cat([x, torch.ones(len(x), 1)], dim=1)


def least_squares(masses: Masses) -> Callable[[Tensor], Tensor]:
    """The best linear prediction of log masses by features. Shape of it: (N, d) -> (N, L)."""
    solution = torch.linalg.lstsq(wide(masses.features), masses.log_mass).solution
    return lambda x: wide(x) @ solution


@torch.enable_grad()
def fitted(masses: Masses, rows: int, steps: int = 300, batch: int = 1024) -> Callable[[Tensor], Tensor]:
    """Log masses but for a number a token, log sum_j exp(w_gj . x + b_gj): fitted as a cascade's group head
    would be, by cross-entropy, to the groups' exact shares. Shape of it: (N, d) -> (N, L).

    Args:
        rows: of each group.
    """
    x, share = wide(masses.features), masses.log_mass.softmax(1)
    generator = torch.Generator().manual_seed(1)
    start = torch.linalg.lstsq(x, masses.log_mass).solution.T
    weight = start.repeat_interleave(rows, 0)
    noise = torch.randn(weight.shape, generator=generator)
    weight = (weight + (rows > 1) * noise * weight.std()).requires_grad_()

    def predict(x: Tensor) -> Tensor:
        return (x @ weight.T).unflatten(1, (-1, rows)).logsumexp(2)

    optimiser = torch.optim.Adam([weight], lr=0.02)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        chosen = torch.randint(len(x), (batch,), generator=generator)
        loss = -(share[chosen] * predict(x[chosen]).log_softmax(1)).sum(1).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    weight.requires_grad_(False)
    return lambda x: predict(wide(x))


def of_moments(masses: Masses, second: bool) -> Tensor:
    """Log masses as if the logits of a group's tokens were normal, their means and variances those of the
    table's rows, each of the d columns for itself: nothing is fitted. Shape: -> (N, L).

    Args:
        second: with the variances.
    """
    table, x = masses.head.table.weight, masses.features
    rows = [table[tokens] for tokens in groups_of(masses.head)]
    found = x @ torch.stack([each.mean(0) for each in rows]).T + masses.head._sizes.log()
    if second:
        found += 0.5 * x.square() @ torch.stack([each.var(0, unbiased=False) for each in rows]).T
    return found
