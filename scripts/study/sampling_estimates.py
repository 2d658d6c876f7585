"""Estimates of a softmax's normaliser and gradient from a few groups of its tokens, for sampling_bias.py.

All is in terms of the groups' masses: of a token, exp(``log_mass``) of group g is Z_g, and pi_g is the
probability that g is drawn. The gradient of a loss by a group's log mass is the share of the probability that
the loss takes the group to have; by features and rows it follows from that. So an estimate is judged by its
log Z and its shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Drawn(NamedTuple):
    """What an estimate may look at.

    Attributes:
        log_mass: (N, L) log Z_g; of groups that are not drawn it is not to be read.
        drawn: (N, L) bool, the gold group too.
        inclusion: (N, L) pi_g, 1 for the gold group.
        sure: (N, L) bool: drawn whatever is drawn, the gold group too.
        predicted: (N, L) log masses that were predicted before, or None.
    """

    log_mass: Tensor
    drawn: Tensor
    inclusion: Tensor
    sure: Tensor
    predicted: Tensor | None = None

    def weighted(self) -> Tensor:
        """Z_g / pi_g, scaled so that they add up to 1. Shape: (N, L)."""
        return self.log_weighted().softmax(dim=1)

    def log_weighted(self) -> Tensor:
        """log(Z_g / pi_g), -inf where not drawn. Shape: (N, L)."""
        return (self.log_mass - self.inclusion.log()).masked_fill(~self.drawn, -torch.inf)


#: log Z (N,) and shares (N, L).
Estimate = tuple[Tensor, Tensor]
Estimator = Callable[[Drawn], Estimate]


def plain(given: Drawn) -> Estimate:
    """log of the unbiased Z_hat, and its gradient: what the head does."""
    log_weighted = given.log_weighted()
    return log_weighted.logsumexp(dim=1), log_weighted.softmax(dim=1)


def variance(given: Drawn, weighted: Tensor) -> Tensor:
    """Of Z_hat, estimated from the drawn groups: Horvitz and Thompson's for samples of one size, in the form
    of Hajek. Shape: (N, L) weighted masses -> (N,) in the square of their unit."""
    chance = ((1 - given.inclusion) * (given.drawn & ~given.sure)).to(weighted.dtype)
    mean = (chance * weighted).sum(1) / chance.sum(1).clamp(min=1e-9)
    count = (chance > 0).sum(1)
    return count / (count - 1).clamp(min=1) * (chance * (weighted - mean.unsqueeze(1)) ** 2).sum(1)


def second_order(given: Drawn) -> Estimate:
    """log Z_hat + Var_hat / (2 Z_hat^2), and its gradient."""
    with torch.enable_grad():
        log_mass = given.log_mass.detach().requires_grad_()
        here = given._replace(log_mass=log_mass)
        log_z, _ = plain(here)
        value = log_z + variance(here, here.weighted()) / 2
        (shares,) = torch.autograd.grad(value.sum(), log_mass)
    return value.detach(), shares


def second_order_by_pairs(
    share: Tensor, log_weight: Tensor, rows: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """``second_order`` where drawn groups are listed: what it adds to log Z_hat, and its shares.

    Args:
        share: (R,) of pairs of a row and a group: Z_g / pi_g of Z_hat.
        log_weight: (R,) log 1 / pi_g; 0 where the group is always in.
        rows: (R,) of the pairs.
        count: N.

    Shape: -> (N,), (R,).
    """

    def by_row(each: Tensor) -> Tensor:
        return each.new_zeros(count).index_add_(0, rows, each)

    chance = 1 - (-log_weight).exp()
    drawn = by_row((chance > 0).to(share.dtype))
    unbiased = drawn / (drawn - 1).clamp(min=1)
    off = share - (by_row(chance * share) / by_row(chance).clamp(min=1e-9))[rows]
    # Half the variance's derivative by a share: the mean's own adds up to nothing.
    slope = unbiased[rows] * chance * off
    return by_row(slope * off) / 2, share * (1 + slope - by_row(slope * share)[rows])


def jackknife(given: Drawn) -> Estimate:
    """n log Z_hat - (n - 1) x the mean of log Z_hat without each of the n drawn groups in turn."""
    with torch.enable_grad():
        log_mass = given.log_mass.detach().requires_grad_()
        here = given._replace(log_mass=log_mass)
        log_z, _ = plain(here)
        weighted = here.weighted()
        chosen = given.drawn & ~given.sure
        count = chosen.sum(1, keepdim=True).to(weighted.dtype)
        some = (weighted * chosen).sum(1, keepdim=True)
        left = 1 - some + (some - weighted) * count / (count - 1).clamp(min=1)
        mean = (left.clamp(min=1e-6).log() * chosen).sum(1) / count.squeeze(1).clamp(min=1)
        value = log_z - (count.squeeze(1) - 1) * mean
        (shares,) = torch.autograd.grad(value.sum(), log_mass)
    return value.detach(), shares


def conditional(given: Drawn) -> Estimate:
    """Each group's share by a normaliser that is unbiased given that this group is drawn.

    A group meets Z_hat only when it is drawn, and then Z_hat is large: its own mass counts 1 / pi times. Here
    it counts once in the normaliser of its own share, and the others count as is their chance beside it. What
    is left is E[1 / Z_hat] > 1 / Z, for all groups alike, taken back to second order.
    """
    log_z, weighted = plain(given)
    chosen = given.drawn & ~given.sure
    some = weighted * chosen
    count = chosen.sum(1, keepdim=True).to(weighted.dtype)
    total = some.sum(1, keepdim=True)
    others = (total - some) * (count - given.inclusion).clamp(min=0) / (count - 1).clamp(min=1)
    own = 1 - total + weighted * given.inclusion + others
    normaliser = torch.where(chosen, own, torch.ones_like(own))
    spread = variance(given, weighted)
    shares = weighted / normaliser / (1 + spread.unsqueeze(1))
    return log_z + spread / 2, shares


def difference(given: Drawn, floor: float = 0.1) -> Estimate:
    """Z_hat = sum of all m_g + sum over drawn groups of (Z_g - m_g) / pi_g, m_g the predicted masses; at
    least the masses seen, and ``floor`` of those predicted."""
    assert given.predicted is not None
    scale = torch.maximum(given.predicted.logsumexp(dim=1), given.log_weighted().logsumexp(dim=1))
    predicted = (given.predicted - scale.unsqueeze(1)).exp()
    mass = (given.log_mass - scale.unsqueeze(1)).exp() * given.drawn
    corrected = ((mass - predicted * given.drawn) / given.inclusion).sum(1)
    least = torch.maximum(mass.sum(1), floor * predicted.sum(1))
    z = torch.maximum(predicted.sum(1) + corrected, least)
    return z.log() + scale, mass / given.inclusion / z.unsqueeze(1)


def ratio(given: Drawn) -> Estimate:
    """Z_hat = sum of all m_g x (sum of Z_g / pi_g) / (sum of m_g / pi_g), those over drawn groups."""
    assert given.predicted is not None
    seen = (given.predicted - given.inclusion.log()).masked_fill(~given.drawn, -torch.inf)
    weighted = given.log_weighted()
    log_z = given.predicted.logsumexp(1) + weighted.logsumexp(1) - seen.logsumexp(1)
    return log_z, (weighted - log_z.unsqueeze(1)).exp()
