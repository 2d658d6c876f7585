"""What the heads are timed against: the softmax in several forms."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scripts.gpu.cases import SMOOTHING, Shape

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Peer:
    """A step of one softmax, the same batch and interface as ``Case``.

    Args:
        loss: features (N, d), weight (V, d), target (N,) -> scalar.
        shape: sizes.
        device: where.
    """

    def __init__(self, loss: Loss, shape: Shape, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(1)
        self.loss = loss
        self.features = torch.randn(shape.tokens, shape.dim, generator=generator)
        self.features = self.features.to(device, shape.features).requires_grad_()
        torch.manual_seed(1)
        weight = torch.randn(shape.vocab, shape.dim, device=device) * shape.dim**-0.5
        self.weight = nn.Parameter(weight.to(shape.weights))
        target = (
            torch.rand(shape.tokens, generator=generator, dtype=torch.float64) ** 4 * shape.vocab
        ).long()
        self.target = target.clamp_(max=shape.vocab - 1).to(device)

    def prepare(self) -> None:
        self.release()

    def run(self) -> None:
        self.loss(self.features, self.weight, self.target).backward()

    def release(self) -> None:
        self.features.grad = self.weight.grad = None


def dense(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """As fairseq does it: log-softmax in fp32, then ``label_smoothed_cross_entropy``."""
    log_probs = F.log_softmax(F.linear(features, weight), dim=-1, dtype=torch.float32)
    nll = -log_probs.gather(1, target.unsqueeze(1)).sum()
    smooth = -log_probs.mean(dim=-1).sum()
    return (1.0 - SMOOTHING) * nll + SMOOTHING * smooth


def _cross_entropy(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    logits = F.linear(features, weight).float()
    return F.cross_entropy(logits, target, label_smoothing=SMOOTHING, reduction="sum")


def compiled() -> Loss:
    """Linear and cross-entropy under ``torch.compile``."""
    torch._dynamo.reset()  # of another V, it would be compiled for every V
    return torch.compile(_cross_entropy)


def cut_cross_entropy() -> Loss:
    """Of the package of that name, which has no smoothing."""
    from cut_cross_entropy import linear_cross_entropy  # type: ignore[import-not-found]

    return lambda features, weight, target: linear_cross_entropy(features, weight, target, reduction="sum")


def liger() -> Loss:
    """Liger's fused linear cross-entropy."""
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss  # type: ignore[import-not-found]

    loss = LigerFusedLinearCrossEntropyLoss(label_smoothing=SMOOTHING, reduction="sum")
    return lambda features, weight, target: loss(weight, features, target)


#: How each is made; an ImportError: it is not here.
PEERS: dict[str, Callable[[], Loss]] = {
    "dense": lambda: dense,
    "dense, torch.compile": compiled,
    "cut-cross-entropy": cut_cross_entropy,
    "liger": liger,
}
