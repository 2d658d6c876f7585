"""Groups drawn for each row in proportion to what they are predicted to hold, in one launch.

The same sample as torch's operators draw (``heads/sampling/predicted.py``), from the same random numbers.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mhe_fairseq.heads.kernels.dispatch import on
from mhe_fairseq.heads.kernels.launch import Tile, launch, power_of_2
from mhe_fairseq.heads.once import signed


class Groups(NamedTuple):
    """What is drawn from, the same from batch to batch: L groups that have tokens.

    Attributes:
        prior: (L,) fp64: their shares of the text.
        of_token: (V,) long: a token's group, numbered without the empty ones.
        slots: (V,) long: a token's slot, ``length`` of them a group.
        length: see ``slots``.
        anyway: part of a share that is the prior, whatever is predicted.
    """

    prior: Tensor
    of_token: Tensor
    slots: Tensor
    length: int
    anyway: float


class Drawn(NamedTuple):
    """Of N rows with ``count`` groups each, and before these its target's. Shape: (N, 1 + count).

    Attributes:
        groups: long.
        slots: long: the target's, then the first of each group.
        log_weight: fp32: what corrects a group's logits for its chance; -inf: drawn, and the target's.
    """

    groups: Tensor
    slots: Tensor
    log_weight: Tensor


def draw_rows(
    of: Groups, log_share: Tensor, target: Tensor, order: Tensor, shift: Tensor, count: int
) -> Drawn:
    """Draw ``count`` groups for each row.

    Args:
        of: see there.
        log_share: (N, L) fp32, N > 0, L > ``count``: logs of predicted shares.
        target: (N,) long.
        order: (L,) long, a random order of the groups.
        shift: (N,) fp64, random numbers in [0, 1).
        count: G.
    """
    with on(log_share.device):
        return Drawn(*_Draw.apply(of, count, log_share.contiguous(), target, order, shift))


class _Draw(torch.autograd.Function):
    """No gradient: a function so that under ``torch.func`` a kernel is given plain tensors."""

    @staticmethod
    @signed
    def forward(
        of: Groups, count: int, log_share: Tensor, target: Tensor, order: Tensor, shift: Tensor
    ) -> tuple[Tensor, ...]:
        n, among = log_share.shape
        # Zeros, which are groups too: where launches are only watched, these are read all the same.
        groups = torch.zeros(n, 1 + count, dtype=torch.long, device=log_share.device)
        slots = torch.zeros_like(groups)
        log_weight = torch.empty(n, 1 + count, device=log_share.device)
        width = power_of_2(among)
        launch(
            draw_kernel, (n,),
            (log_share, of.prior, order, shift, target, of.of_token, of.slots, groups, slots, log_weight),
            Tile({}, max(1, min(width // 128, 16)), 1),
            L=among, LP=width, COUNT=count, LENGTH=of.length, ANYWAY=of.anyway,
        )  # fmt: skip
        return groups, slots, log_weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(*output)

    @staticmethod
    def backward(ctx: Any, *_: Any) -> tuple[None, ...]:
        return (None,) * 6


@triton.jit
def draw_kernel(
    log_share, prior, order, shift, target, of_token, slot_of_token, groups, slots, log_weight,
    L: tl.constexpr, LP: tl.constexpr, COUNT: tl.constexpr, LENGTH: tl.constexpr, ANYWAY: tl.constexpr,
):  # fmt: skip
    """A program draws the groups of a row. In fp64: rounded sums would move the points that groups lie at."""
    row = tl.program_id(0).to(tl.int64)
    k = tl.arange(0, LP)
    at = tl.load(order + k, mask=k < L, other=0)
    share = tl.exp(tl.load(log_share + row * L + at, mask=k < L, other=float("-inf")).to(tl.float64))
    share = (1 - ANYWAY) * share + ANYWAY * tl.load(prior + at, mask=k < L, other=0.0)
    # In proportion to shares, at most 1: those that would be more get 1, which leaves a larger factor to the
    # others, and may lift some of these to 1.
    factor = COUNT / tl.sum(share, 0)
    for _ in range(COUNT):
        full = share * factor >= 1
        number = tl.sum(full.to(tl.int32), 0)
        rest = tl.sum(tl.where(full, 0.0, share), 0)
        factor = tl.where(number < COUNT, (COUNT - number) / rest, factor)
    chance = tl.minimum(share * factor, 1.0)
    ends = tl.cumsum(chance, 0)
    gold_token = tl.load(target + row)
    gold = tl.load(of_token + gold_token)
    out = row * (1 + COUNT)
    tl.store(groups + out, gold)
    tl.store(slots + out, tl.load(slot_of_token + gold_token))
    tl.store(log_weight + out, 0.0)
    moved = tl.load(shift + row)
    for i in range(1, COUNT + 1):
        # A sum of rounded numbers may end just below its last point.
        place = tl.minimum(tl.sum((ends < i - moved).to(tl.int32), 0), L - 1)
        group = tl.sum(tl.where(k == place, at, 0), 0)
        weight = -tl.log(tl.sum(tl.where(k == place, chance, 0.0), 0)).to(tl.float32)
        tl.store(groups + out + i, group)
        tl.store(slots + out + i, group * LENGTH)
        tl.store(log_weight + out + i, tl.where(group == gold, float("-inf"), weight))
