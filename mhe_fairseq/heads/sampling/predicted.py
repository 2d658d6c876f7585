"""Groups drawn for each token by itself, in proportion to the share of its probability they are predicted to
hold."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.once import once, signed

#: Share of the draws that is as without a prediction: what is predicted at 0 is drawn all the same.
ANYWAY = 0.2


class Predictor(nn.Module):
    """A linear soft-max over groups: what a token's groups hold, as far as features tell it directly.

    It begins as the shares of groups in the text, for any features.

    Args:
        dim: d.
        prior: (L,) expected shares of groups in the text; 0 where a group has no tokens.
    """

    def __init__(self, dim: int, prior: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(prior), dim))
        # A group without tokens is left out by who asks.
        self.bias = nn.Parameter(prior.clamp(min=1e-6).log().float())

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        """Log shares of some groups, of which no others are. Shape: (N, d), (K,) long -> (N, K)."""
        weight: Tensor = self.weight
        bias: Tensor = self.bias
        if len(groups) < len(weight):
            weight, bias = weight[groups], bias[groups]
        return torch.log_softmax(wide(x) @ wide(weight).T + wide(bias), dim=-1)


def capped(share: Tensor, count: int) -> Tensor:
    """``inclusion_probabilities`` of every row: in proportion to shares, at most 1, adding up to ``count``.

    Shape: (N, L) positive, L > count -> (N, L).
    """
    # With the j largest at 1 the others have a factor; it holds for the first j whose next one is below 1.
    largest = share.topk(count, dim=1).values
    taken = largest.cumsum(dim=1) - largest
    factor = torch.arange(count, 0, -1, device=share.device) / (share.sum(dim=1, keepdim=True) - taken)
    first = (largest * factor < 1).to(torch.uint8).argmax(dim=1, keepdim=True)
    return (share * factor.gather(1, first)).clamp_(max=1.0)


def random_numbers(
    rows: int, groups: int, device: torch.device, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """All that is random in ``systematic_rows``: an order of the groups, (L,) long, and a shift for each row,
    (N,) float64 in [0, 1)."""
    order = torch.randperm(groups, generator=generator)
    return order.to(device), torch.rand(rows, generator=generator, dtype=torch.float64).to(device)


def systematic_rows(inclusion: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """A sample for each row, in which a group is with its probability: groups lie end to end in one random
    order, each as long as its probability, and those at a row's shift, its shift + 1, ... are drawn.

    Shape: (N, L) whose rows add up to ``count`` -> (N, count) long.
    """
    rows, groups = inclusion.shape
    order, shift = random_numbers(rows, groups, inclusion.device, generator)
    ends = inclusion.double()[:, order].cumsum(1)
    points = torch.arange(1, count + 1, device=inclusion.device) - shift.unsqueeze(1)
    # A sum of rounded numbers may end just below its last point.
    return order[torch.searchsorted(ends, points).clamp_(max=len(order) - 1)]


def among(drawn: Tensor, groups: int) -> Tensor:
    """Which of all groups are in samples. Shape: (N, count) long -> (N, groups) bool."""
    none = torch.zeros(len(drawn), groups, dtype=torch.bool, device=drawn.device)
    return none.scatter_(1, drawn, True)


@torch.no_grad()
def chances(log_share: Tensor, prior: Tensor, count: int) -> Tensor:
    """Inclusion probabilities of each token's groups. Shape: (N, L), (L,) -> (N, L) float64."""
    share = (1 - ANYWAY) * log_share.double().exp() + ANYWAY * prior
    return capped(share, count)


def teaching(loss: Tensor, log_share: Tensor, groups: Tensor, share: Tensor) -> Tensor:
    """The same loss, whose gradient also teaches the predictor what its groups were found to hold: that of
    their cross-entropy, which is not added to what is reported.

    Shape: (N,), (N, L) of ``predictor``, (N, K) long, (N, K) of the same type -> (N,).
    """
    taught: Tensor = _Teaching.apply(loss, log_share, groups, share)
    return taught


class _Teaching(torch.autograd.Function):
    @staticmethod
    @signed
    def forward(loss: Tensor, log_share: Tensor, groups: Tensor, share: Tensor) -> Tensor:
        return loss.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.groups_of_all = inputs[1].size(1)
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        def work(d_loss: Tensor, groups: Tensor, share: Tensor) -> Tensor:
            none = share.new_zeros(len(share), ctx.groups_of_all)
            return none.scatter_add_(1, groups, share * -d_loss.unsqueeze(1))

        d_share = once(work, d_loss, *ctx.saved_tensors) if ctx.needs_input_grad[1] else None
        return d_loss, d_share, None, None
