"""A command: of each head, how many kernels Triton would compile for a step, and for steps of many sizes.

Kernels are jitted for the compiler here, not for the interpreter, and are not run."""

from __future__ import annotations

import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead
from mhe_fairseq.heads.kernels import dispatch, launch
from scripts.gpu.record import signature_key

BOOK = Codebook((9, 21), torch.randperm(189, generator=torch.Generator().manual_seed(1))[:150])
DEEP = Codebook((4, 5, 12), vocab_size=230)
DIM = 16
COUNTS = [1, 2, 3, 15, 16, 17, 31, 32, 33, 64, 127, 128, 129, *range(400, 480), 4095, 4096, 4097]


def heads() -> dict[str, OutputHead]:
    embed = nn.Embedding(len(BOOK), DIM)
    return {
        "product": ProductHead(DIM, BOOK),
        "mixture": ProductHead(DIM, BOOK, mixtures=3),
        "cascade": CascadeHead(DIM, BOOK),
        "cascade-tied": CascadeHead(DIM, BOOK, tied=embed),
        "cascade-3": CascadeHead(DIM, DEEP),
        "cascade-bottleneck": CascadeHead(DIM, BOOK, bottleneck=8),
        "sampling": SamplingHead(DIM, BOOK, groups=3),
        "sampling-tied": SamplingHead(DIM, BOOK, groups=3, tied=embed),
        "sampling-predicted": SamplingHead(DIM, BOOK, groups=3, variant="predicted"),
    }


def kernels_of(head: OutputHead, counts: list[int]) -> set[tuple[object, ...]]:
    """What Triton compiles for steps of so many tokens."""
    seen: set[tuple[object, ...]] = set()

    def watch(launched: launch.Launch) -> bool:
        seen.add(signature_key(launched))
        return False

    with dispatch.pretend(), launch.watched(watch):
        for count in counts:
            x = torch.randn(count, DIM, requires_grad=True)
            loss = head(x, torch.randint(150, (count,)))
            assert loss.smooth is not None
            (loss.nll.sum() + loss.smooth.mean()).backward()
            with torch.no_grad():
                head.log_prob(x, torch.randint(150, (count,)))
    return seen


if __name__ == "__main__":
    for name, head in heads().items():
        once = kernels_of(head.train(), [64])
        print(name, len(once), len(once | kernels_of(head, COUNTS)))
