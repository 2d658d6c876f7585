"""A cascade's loss by kernels: what they need of a head, and of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.heads.cascade.level import Level
from mhe_fairseq.heads.kernels import dispatch

if TYPE_CHECKING:
    from mhe_fairseq.heads.cascade.head import CascadeHead
    from mhe_fairseq.heads.kernels.cascade import CascadeParts, CascadeSpec
    from mhe_fairseq.heads.kernels.level import LevelTables
    from mhe_fairseq.heads.kernels.plan import Draw


@dataclass(frozen=True)
class CascadeTables:
    """What kernels read beside weights: made once for a codebook and a device.

    Attributes:
        device: where.
        host_slots: (V,) long, on the host.
        slots, group_counts, levels: as in ``CascadeSpec``.
    """

    device: torch.device
    host_slots: np.ndarray
    slots: Tensor
    group_counts: Tensor
    levels: tuple[LevelTables, ...]

    @property
    def kind(self) -> tuple[object, ...]:
        """What of these decides which kernels are compiled."""
        return tuple((each.tokens is None, each.counts is None, each.is_binary) for each in self.levels)

    @classmethod
    def of(cls, head: CascadeHead, device: torch.device) -> CascadeTables:
        levels = tuple(_level_tables(level, head.codebook.token_of_slot, device) for level in head.levels)
        return cls(
            device,
            head.codebook.slots.numpy(),
            head.codebook_slots.to(device),
            head.group_counts.to(device, torch.int32),
            levels,
        )


def _level_tables(level: Level, token_of_slot: Tensor, device: torch.device) -> LevelTables:
    from mhe_fairseq.heads.kernels.level import LevelTables

    counts = level.counts.cpu()
    is_even = bool((counts == counts[:, :1]).all()) and bool((counts > 0).all())
    is_binary = bool((counts <= 1).all()) or is_even
    totals = (counts > 0).sum(dim=1) if is_binary else counts.sum(dim=1)
    return LevelTables(
        level.prefixes,
        level.length,
        token_of_slot.to(device, torch.int32) if level.is_tied else None,
        None if is_even else counts.flatten().to(device, torch.int32),
        None if is_even else totals.to(device, torch.int32),
        is_binary,
    )


def serves(head: CascadeHead, features: Tensor) -> bool:
    """Whether kernels have the loss of these features.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or any(type(level) is not Level for level in head.levels):
        return False
    if not dispatch.serve(features, head.group.weight, *(level.weight for level in head.levels)):
        return False
    from mhe_fairseq.heads.kernels.plan import MOST_RANGES

    return head.local.prefixes <= MOST_RANGES


def loss(
    head: CascadeHead, features: Tensor, target: Tensor, smoothing: bool, accuracy: bool
) -> CascadeParts | None:
    """The loss of a batch; None where a kernel does not work on this device."""
    from mhe_fairseq.heads.kernels.cascade import CascadeSpec, cascade_loss

    kind = features.device.type
    if torch.is_autocast_enabled(kind):
        features = features.to(torch.get_autocast_dtype(kind))
    rows = head.group.rows().to(features.dtype)
    bias = head.group.bias.to(features.dtype)
    inputs = head.inputs(torch.nn.functional.dropout(features, head.dropout, head.training))
    tables = [level.weight for level in head.levels]
    form = 0
    if smoothing:
        form = 1 if head.smoothing_form == "sampled" else 2
    draw = _draw(head, features.device) if form == 1 else None
    keep = torch.is_grad_enabled() and any(
        each.requires_grad for each in (features, rows, bias, *inputs, *tables)
    )
    fixed = head.kernel_tables(features.device)
    spec = CascadeSpec(
        fixed.slots, head.codebook.lengths, head.group.prototypes, fixed.group_counts, fixed.levels, form,
        accuracy, keep,
    )  # fmt: skip

    def run() -> CascadeParts:
        with torch.autocast(kind, enabled=False):
            return cascade_loss(spec, draw, target, (features, rows, bias), inputs, tables)

    return dispatch.attempt(
        ("cascade", spec.lengths, spec.prototypes, fixed.kind, form, accuracy, keep)
        + tuple(map(dispatch.kind_of, (features, rows, bias, *inputs, *tables))),
        lambda: _rehearse(spec, draw, target[:1], (features, rows, bias), inputs, tables),
        run,
    )


def _draw(head: CascadeHead, device: torch.device) -> Draw:
    """The groups that smooth each part of the batch; ``CascadeHead._smoothing_tokens`` for the kernels."""
    from mhe_fairseq.heads.kernels.plan import Draw

    tokens, part = head.drawn_tokens()
    lengths = head.codebook.lengths
    slots = head.kernel_tables(device).host_slots[tokens]
    prefixes, below = [], head.codebook.size
    for length in lengths[:-1]:
        below //= length
        prefixes.append(slots // below)
    # Inside a transform of torch.func its numbers would be of that transform, where kernels cannot read them.
    with torch._C._DisableFuncTorch():
        return Draw.of(part, prefixes, device)


def _rehearse(
    spec: CascadeSpec,
    draw: Draw | None,
    target: Tensor,
    group: tuple[Tensor, Tensor, Tensor],
    inputs: list[Tensor],
    tables: list[Tensor],
) -> None:
    """A step of one token, on copies that share the weights' memory."""
    from mhe_fairseq.heads.kernels.cascade import cascade_loss

    x, rows, bias = dispatch.leaf(group[0][:1]), dispatch.leaf(group[1]), dispatch.leaf(group[2])
    sources = [x if each is group[0] else dispatch.leaf(each[:1]) for each in inputs]
    weights = [dispatch.leaf(each) for each in tables]
    with torch.set_grad_enabled(spec.keep), torch.autocast(x.device.type, enabled=False):
        parts = cascade_loss(spec, draw, target, (x, rows, bias), sources, weights)
        dispatch.differentiate([parts.nll, parts.smooth], [x, *sources, rows, bias, *weights])
