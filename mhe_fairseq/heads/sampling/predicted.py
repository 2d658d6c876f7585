"""Groups drawn for each token by itself, in proportion to the share of its probability they are predicted to
hold."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhe_fairseq.heads.base import wide

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
        weight, bias = self.weight[groups], self.bias[groups]
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


def systematic_rows(inclusion: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """A sample for each row, in which a group is with its probability: groups lie end to end in one random
    order, each as long as its probability, and those at a row's shift, its shift + 1, ... are drawn.

    Shape: (N, L) whose rows add up to whole numbers -> (N, L) bool.
    """
    count, groups = inclusion.shape
    order = torch.randperm(groups, generator=generator).to(inclusion.device)
    shift = torch.rand(count, 1, generator=generator, dtype=torch.float64).to(inclusion.device)
    ends = inclusion.double()[:, order].cumsum(1)
    # A sum of rounded numbers is not quite whole.
    ends[:, -1:] = ends[:, -1:].round()
    points = (ends + shift).floor()
    met = points.diff(dim=1, prepend=torch.zeros_like(shift)) > 0
    drawn = torch.empty_like(met)
    drawn[:, order] = met
    return drawn | (inclusion >= 1)


@torch.no_grad()
def chances(log_share: Tensor, prior: Tensor, count: int) -> Tensor:
    """Inclusion probabilities of each token's groups. Shape: (N, L), (L,) -> (N, L) float64."""
    share = (1 - ANYWAY) * log_share.double().exp() + ANYWAY * prior.to(log_share.device)
    return capped(share, count)
