"""A softmax of V x d for a trained head: rows whose logits come near the head's log-probabilities.

A cascade's log p(token) is, up to what all tokens have in common, x . w_token + s_group(x): linear in the
features inside a group, and only what groups have to each other is not. So rows are found in closed form, by
least squares: those of a group from the features that make the group probable. Nothing is learned from
targets. The same holds of a product head, which is a softmax of rows that are sums, and roughly of a mixture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.models.fit_groups import Progress

#: What a feature counts for a group beside sqrt(p(group)): improbable tokens are to stay improbable.
FLOOR = 0.02

#: Of the mean of the diagonal, added to it: features need not span their space.
RIDGE = 1e-5

#: One feature of so many is held back, to tell how good the fit is.
HELD_BACK = 16

#: log p(token) of features. Shape: (N, d) -> (N, V).
LogProbs = Callable[[Tensor], Tensor]

#: Numbers V wide that are held at once, 64 MiB of them.
_WIDE = 2**24


@dataclass(frozen=True)
class FittedRows:
    """A softmax's output layer.

    Attributes:
        rows: (V, d) fp32.
        divergence: Kullback-Leibler from the head's probabilities, nats a token, over the features that were
            not fitted to.
        tokens: that were fitted to.
    """

    rows: Tensor
    divergence: float
    tokens: int


@torch.no_grad()
def fit_rows(
    batches: Iterable[Tensor], log_probs: LogProbs, group_of: Tensor, groups: int, progress: Progress
) -> FittedRows:
    """Fit rows r_v to a head: weighted least squares of x . r_v against log p(v | x), less its mean over v,
    which a softmax takes away again. The weight of a feature x for the tokens of a group g is
    sqrt(p(g | x)) + ``FLOOR``.

    Memory: (G d + V) d numbers of 4 bytes.

    Args:
        batches: features (n, d) of a text, at least ``HELD_BACK`` + d in all, better many more.
        log_probs: the head's.
        group_of: (V,) long, the group of each token.
        groups: G.
        progress: told of "rows" by groups.

    Raises:
        ValueError: fewer than two features.
    """
    solver: _Normal | None = None
    held: list[Tensor] = []
    for batch in batches:
        features = batch.float()
        is_held = torch.arange(len(features), device=features.device) % HELD_BACK == 0
        held.append(features[is_held])
        solver = solver or _Normal(features.size(1), group_of.to(features.device), groups)
        solver.add(features[~is_held], log_probs)
    if solver is None or not solver.count:
        raise ValueError("rows are fitted to two tokens at least")
    rows = solver.solve(progress)
    return FittedRows(rows, divergence(torch.cat(held), log_probs, rows), solver.count)


class _Normal:
    """Normal equations of every group: sums of w x x' and, for its tokens, of w y x.

    Args:
        dim: d.
        group_of: (V,) long.
        groups: G.
    """

    def __init__(self, dim: int, group_of: Tensor, groups: int) -> None:
        self.group_of, self.count = group_of, 0
        self.squares = torch.zeros(groups, dim, dim, device=group_of.device)
        self.products = torch.zeros(len(group_of), dim, device=group_of.device)

    def add(self, features: Tensor, log_probs: LogProbs) -> None:
        """Take in (N, d) fp32."""
        groups = len(self.squares)
        weights = features.new_empty(len(features), groups)
        for which in _parts(features, len(self.group_of)):
            wide = log_probs(features[which]).float()
            mass = wide.new_zeros(len(wide), groups).index_add_(1, self.group_of, wide.exp())
            weights[which] = mass.sqrt() + FLOOR
            wanted = (wide - wide.mean(dim=1, keepdim=True)) * weights[which][:, self.group_of]
            self.products.addmm_(wanted.t(), features[which])
        for square, weight in zip(self.squares, weights.t(), strict=True):
            square.addmm_((features * weight.unsqueeze(1)).t(), features)
        self.count += len(features)

    def solve(self, progress: Progress) -> Tensor:
        """(V, d) fp32."""
        rows = torch.empty_like(self.products)
        for group, square in enumerate(self.squares):
            own = self.group_of.eq(group).nonzero().squeeze(1)
            left = square.double()
            left.diagonal().add_(RIDGE * left.diagonal().mean())
            rows[own] = torch.linalg.solve(left, self.products[own].double().t()).t().float()
            progress("rows", group + 1, len(self.squares))
        return rows


@torch.no_grad()
def divergence(features: Tensor, log_probs: LogProbs, rows: Tensor) -> float:
    """Mean Kullback-Leibler divergence of a softmax from a head. (N, d), ..., (V, d) -> nats a token."""
    total = 0.0
    for which in _parts(features, len(rows)):
        ours = F.linear(features[which], rows).log_softmax(dim=-1)
        theirs = log_probs(features[which]).float()
        total += float(F.kl_div(ours, theirs, reduction="sum", log_target=True))
    return total / max(1, len(features))


def _parts(features: Tensor, width: int) -> Iterator[slice]:
    """A few rows at a time, of which each is to have so many numbers."""
    step = max(1, _WIDE // width)
    return (slice(start, start + step) for start in range(0, len(features), step))
