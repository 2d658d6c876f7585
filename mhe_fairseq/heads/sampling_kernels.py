"""A sampling head's loss by kernels: what they need of a head, and of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.heads.base import HeadLoss
from mhe_fairseq.heads.kernels import dispatch

if TYPE_CHECKING:
    from mhe_fairseq.heads.kernels.sampling import Sample, SamplingSpec, SamplingTables
    from mhe_fairseq.heads.sampling import SamplingHead


def serves(head: SamplingHead, features: Tensor) -> bool:
    """Whether kernels have the loss of these features: in training of the variant that draws groups; in eval
    mode without gradients, as the whole table's logits would have to be kept for them.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or head.variant != "shared":
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
    from mhe_fairseq.heads.kernels.sampling import Sample, SamplingSpec, sampling_loss

    kind, weight = features.device.type, head.table.weight
    if torch.is_autocast_enabled(kind):
        features = features.to(torch.get_autocast_dtype(kind))
    if head.training:
        begins, groups = head.drawn(len(features))
        sample = Sample.of(begins, groups, features.device)
    else:
        sample = Sample.of_all(len(features), head.drawn_groups, features.device)
    keep = torch.is_grad_enabled() and (features.requires_grad or weight.requires_grad)
    tables = head.kernel_tables(features.device).tables
    spec = SamplingSpec(tables, smoothing, accuracy, keep)

    def run() -> tuple[Tensor, Tensor | None, Tensor | None]:
        with torch.autocast(kind, enabled=False):
            return sampling_loss(spec, sample, target, features, weight)

    found = dispatch.attempt(
        (
            "sampling", tables.groups, tables.length, sample.shared.count, sample.weighted, smoothing, accuracy,
            keep, features.device, features.dtype, features.size(1), features.requires_grad, weight.dtype,
            weight.requires_grad,
        ),
        lambda: _rehearse(spec, sample, target[:1], features, weight),
        run,
    )  # fmt: skip
    if found is None:
        return None
    nll, smooth, right = found
    stats = {"sampled_nll": nll.detach()} if head.training else {}
    if right is not None:
        stats["sampled_accuracy" if head.training else "accuracy"] = right
    return HeadLoss(nll, smooth, stats)


def _rehearse(spec: SamplingSpec, sample: Sample, target: Tensor, features: Tensor, weight: Tensor) -> None:
    """A step of one token, on copies that share the weights' memory."""
    from mhe_fairseq.heads.kernels.sampling import sampling_loss

    # All of its rows are the first part's.
    sample = sample._replace(parts=sample.parts.clamp(max=1))
    x = features[:1].detach().requires_grad_(features.requires_grad)
    table = weight.detach().requires_grad_(weight.requires_grad)
    with torch.set_grad_enabled(spec.keep), torch.autocast(x.device.type, enabled=False):
        nll, smooth, _ = sampling_loss(spec, sample, target, x, table)
        if spec.keep:
            total = nll.sum() if smooth is None else nll.sum() + smooth.sum()
            torch.autograd.grad(total, [each for each in (x, table) if each.requires_grad])


@dataclass(frozen=True)
class SamplingKernelTables:
    """What kernels read beside weights: made once for a codebook and a device."""

    device: torch.device
    tables: SamplingTables

    @classmethod
    def of(cls, head: SamplingHead, device: torch.device) -> SamplingKernelTables:
        from mhe_fairseq.heads.kernels.sampling import SamplingTables

        group, place = head.group_of_token.cpu(), head.place_in_group.cpu()
        groups, length = head.drawn_groups, int(place.max()) + 1
        slots = group * length + place
        tokens = torch.full((groups * length,), -1, dtype=torch.int32)
        tokens[slots] = torch.arange(len(slots), dtype=torch.int32)
        log_weight = head.log_weights.to(device, torch.float32)
        tables = SamplingTables(groups, length, slots.to(device), tokens.to(device), log_weight)
        return cls(device, tables)
