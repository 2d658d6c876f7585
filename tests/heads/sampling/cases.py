"""SamplingHead's small cases, and its estimate written out over a table of all logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import Margin
from mhe_fairseq.heads.sampling.group_sample import sample_groups
from mhe_fairseq.heads.sampling.head import PARTS, VARIANTS, SamplingHead
from tests.heads.oracle import softmax_logits

DIM = 5
SPREAD = Codebook((4, 4), torch.tensor([0, 1, 2, 6, 5, 14, 9, 10, 11, 8, 15]))  # sizes 3, 2, 4, 2
every_variant = pytest.mark.parametrize("variant", VARIANTS)
#: The contract's tests are of the variant "shared".
the_papers_variants = pytest.mark.parametrize("variant", ["own", "batch"])


def groups_of(book: Codebook) -> Tensor:
    """(V,) first digits, numbered without the empty ones."""
    return book.digits(torch.arange(len(book)))[:, 0].unique(return_inverse=True)[1]


def build(
    book: Codebook,
    variant: str = "shared",
    groups: int = 1,
    seed: int = 1,
    tied: nn.Embedding | None = None,
    margin: Margin | None = None,
) -> SamplingHead:
    torch.manual_seed(seed)
    head = SamplingHead(DIM, book, groups=groups, variant=variant, tied=tied, margin=margin).double()
    if tied is None:
        nn.init.normal_(head.table.linear.weight, std=1.0)
    return head


def samples_of(head: SamplingHead, count: int) -> list[Tensor]:
    """The groups that the rows of a batch are scored on, drawn or sure."""
    sure, drawn = (head.inclusion == 1).nonzero()[:, 0], (head.inclusion < 1).nonzero()[:, 0]
    ends = torch.linspace(0, count, PARTS + 1).long().diff().tolist()
    samples = sample_groups(head.inclusion[drawn].numpy(), head._generator(), PARTS)
    return [
        torch.cat([sure, drawn[torch.as_tensor(sample)]])
        for rows, sample in zip(ends, samples, strict=True)
        for _ in range(rows)
    ]


def dense_estimate(
    head: SamplingHead, x: Tensor, target: Tensor, weight: Tensor, sampled: list[Tensor]
) -> tuple[Tensor, Tensor]:
    """nll and smooth of the training estimate, written out over an N x V table of logits."""
    group = groups_of(head.codebook)
    gold = group[target].unsqueeze(1)
    logits = softmax_logits(head, x, weight, target)
    is_gold = group == gold
    log_weight = torch.full_like(logits, -torch.inf)
    if head.variant == "shared":
        for row, sample in zip(log_weight, sampled, strict=True):
            row[torch.isin(group, sample)] = 0.0
        log_weight = log_weight - head.inclusion.log()[group]
    elif head.variant == "batch":
        log_weight[:, torch.isin(group, gold)] = 0.0
    log_weight = torch.where(is_gold, 0.0, log_weight)
    log_z = (logits + log_weight).logsumexp(dim=1)
    if head.variant == "shared":
        mean = logits.mean(dim=1)
    else:
        scored = log_weight.isfinite()
        mean = (logits * scored).sum(dim=1) / scored.sum(dim=1)
    return log_z - logits.gather(1, target.unsqueeze(1)).squeeze(1), log_z - mean


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor made, and how many tensors were made of at least ``count_from``."""

    def __init__(self, count_from: int = 1 << 60) -> None:
        super().__init__()
        self.numel, self.count, self.count_from = 0, 0, count_from
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and not func.is_view:
                storage = tensor.untyped_storage()
                self.numel = max(self.numel, storage.nbytes() // tensor.element_size())
                if tensor.numel() >= self.count_from and not func._schema.name.endswith("_"):
                    self.count += 1
        return out
