"""A sampling head's loss by kernels: what they need of a head, and of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.heads.base import HeadLoss
from mhe_fairseq.heads.kernels import dispatch
from mhe_fairseq.heads.sampling.predicted import ANYWAY, teaching

if TYPE_CHECKING:
    from mhe_fairseq.heads.kernels.draws import Drawn
    from mhe_fairseq.heads.kernels.level import LevelTables
    from mhe_fairseq.heads.kernels.plan import Draw
    from mhe_fairseq.heads.kernels.sampling import SamplingSpec
    from mhe_fairseq.heads.kernels.sampling_pairs import PairsLoss
    from mhe_fairseq.heads.sampling.head import SamplingHead
    from mhe_fairseq.heads.sampling.predicted import Predictor

#: Variants whose estimate kernels have.
SERVED = ("shared", "predicted")


@dataclass(frozen=True)
class SamplingTables:
    """What kernels read beside weights: made once for a codebook and a device.

    Attributes:
        device: where.
        level, slots, log_weight: as in ``SamplingSpec``.
        no_weight: zeros in place of ``log_weight``, for ``everything``.
        everything: a draw of all groups for all rows.
    """

    device: torch.device
    level: LevelTables
    slots: Tensor
    log_weight: Tensor
    no_weight: Tensor
    everything: Draw

    @classmethod
    def of(cls, head: SamplingHead, device: torch.device) -> SamplingTables:
        from mhe_fairseq.heads.kernels.level import LevelTables
        from mhe_fairseq.heads.kernels.plan import Draw

        group, place = head.group_of_token.cpu(), head.place_in_group.cpu()
        groups, length = head.drawn_groups, int(place.max()) + 1
        slots = group * length + place
        tokens = torch.full((groups * length,), -1, dtype=torch.int32)
        tokens[slots] = torch.arange(len(slots), dtype=torch.int32)
        return cls(
            device,
            LevelTables(groups, length, tokens.to(device), None, None, True),
            slots.to(device),
            head.log_weights(device, torch.float32),
            torch.zeros(groups, device=device),
            Draw.of(None, [np.arange(groups).reshape(1, -1)], device),
        )


def serves(head: SamplingHead, features: Tensor) -> bool:
    """Whether kernels have the loss of these features: the estimate of variants that draw groups; in eval
    mode the exact loss without gradients, as the whole table's logits would have to be kept for them. A
    head with a margin is left to plain torch: its scores are products with rows of length 1.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or (head.training and head.exact) or head.margin:
        return False
    if head.variant not in SERVED:
        return False
    if not head.training and torch.is_grad_enabled():
        return False
    if not dispatch.serve(features, head.table.weight):
        return False
    from mhe_fairseq.heads.kernels.plan import MOST_RANGES

    return head.drawn_groups <= MOST_RANGES


def loss(
    head: SamplingHead, features: Tensor, target: Tensor, smoothing: bool, accuracy: bool
) -> HeadLoss | None:
    """The loss of a batch; None where a kernel does not work on this device."""
    from mhe_fairseq.heads.kernels.sampling import SamplingSpec, sampling_loss

    kind, weight = features.device.type, head.table.weight
    if torch.is_autocast_enabled(kind):
        features = features.to(torch.get_autocast_dtype(kind))
    if head.training and head.predictor is not None:
        return _loss_of_pairs(head, head.predictor, features, target, smoothing, accuracy)
    tables = head.kernel_tables(features.device)
    draw = _draw(head, features.device) if head.training else tables.everything
    keep = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    spec = SamplingSpec(
        tables.level, tables.slots, tables.log_weight if head.training else tables.no_weight,
        not head.training, smoothing, accuracy, keep,
    )  # fmt: skip

    def run() -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.autocast(kind, enabled=False):
            return sampling_loss(spec, draw, target, features, weight)

    found = dispatch.attempt(
        ("sampling", tables.level.prefixes, tables.level.length, draw.parts, draw.levels)
        + (head.training, smoothing, accuracy, keep)
        + tuple(map(dispatch.kind_of, (features, weight))),
        lambda: _rehearse(spec, draw, target[:1], features, weight),
        run,
    )
    if found is None:
        return None
    nll, smooth, right = found
    stats = {"sampled_nll": nll.detach()} if head.training else {}
    if right is not None:
        stats["sampled_accuracy" if head.training else "accuracy"] = right
    return HeadLoss(nll, smooth, stats)


def _loss_of_pairs(
    head: SamplingHead,
    predictor: Predictor,
    features: Tensor,
    target: Tensor,
    smoothing: bool,
    accuracy: bool,
) -> HeadLoss | None:
    """As ``loss``, of rows with groups of their own."""
    from mhe_fairseq.heads.kernels.draws import Groups, draw_rows
    from mhe_fairseq.heads.kernels.sampling_pairs import PairsSpec, pairs_loss

    kind, weight, device = features.device.type, head.table.weight, features.device
    tables = head.kernel_tables(device)
    keep = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    spec = PairsSpec(tables.level, smoothing, accuracy, keep)
    with torch.autocast(kind, enabled=False):
        first_digits, prior = head.drawn_from(device)
        shares = predictor(features.detach(), first_digits)
        drawn_from = Groups(prior, head.group_of_token, tables.slots, tables.level.length, ANYWAY)
        order, shift = head.random_numbers(len(target), device)

        def draw(rows: int) -> Drawn:
            return draw_rows(drawn_from, shares.detach()[:rows], target[:rows], order, shift, head.groups)

        def run() -> tuple[PairsLoss, Drawn]:
            drawn = draw(len(target))
            return pairs_loss(spec, drawn.slots, drawn.log_weight, features, weight), drawn

        def rehearse() -> None:
            x, table, drawn = dispatch.leaf(features[:1]), dispatch.leaf(weight), draw(1)
            with torch.set_grad_enabled(keep):
                made = pairs_loss(spec, drawn.slots, drawn.log_weight, x, table)
                dispatch.differentiate([made.nll, made.smooth], [x, table])

        found = dispatch.attempt(
            ("pairs", tables.level.prefixes, tables.level.length, head.groups, smoothing, accuracy, keep)
            + tuple(map(dispatch.kind_of, (features, weight))),
            rehearse,
            run,
        )
        if found is None:
            return None
        made, drawn = found
        stats = {"sampled_nll": made.nll.detach()}
        if made.right is not None:
            stats["sampled_accuracy"] = made.right
        return HeadLoss(teaching(made.nll, shares, drawn.groups, made.share), made.smooth, stats)


def _draw(head: SamplingHead, device: torch.device) -> Draw:
    """The groups of each part of the batch."""
    from mhe_fairseq.heads.kernels.plan import Draw

    groups = head.drawn()
    table = np.full((len(groups), max(len(each) for each in groups)), -1)
    for row, each in zip(table, groups, strict=True):
        row[: len(each)] = each
    # Inside a transform of torch.func its numbers would be of that transform, where kernels cannot read them.
    with torch._C._DisableFuncTorch():
        return Draw.of(None, [table], device)


def _rehearse(spec: SamplingSpec, draw: Draw, target: Tensor, features: Tensor, weight: Tensor) -> None:
    """A step of one token, on copies that share the weights' memory."""
    from mhe_fairseq.heads.kernels.sampling import sampling_loss

    x, table = dispatch.leaf(features[:1]), dispatch.leaf(weight)
    with torch.set_grad_enabled(spec.keep), torch.autocast(x.device.type, enabled=False):
        nll, smooth, _ = sampling_loss(spec, draw, target, x, table)
        dispatch.differentiate([nll, smooth], [x, table])
