"""Training steps of output layers: the dense softmax and every head, on the same batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead

MIXTURES = 8
LABEL_SMOOTHING = 0.1

#: What can be measured, and what it is called in tables. "softmax" is what the others are compared with.
HEADS = {
    "softmax": "softmax, dense",
    "product": "product",
    "mixture": f"mixture of {MIXTURES}",
    "cascade": "cascade",
    "cascade-tied": "cascade, tied",
    "sampling": "sampling",
    "sampling-predicted": "sampling, predicted",
}


@dataclass(frozen=True)
class Batch:
    """What a step reads.

    Attributes:
        features: (N, d), standard normal; a leaf with a gradient, as a decoder's output has one.
        target: (N,) long.
    """

    features: Tensor
    target: Tensor

    @classmethod
    def random(cls, vocab: int, dim: int, tokens: int, device: torch.device) -> Batch:
        """Targets follow Zipf's law over the order of tokens, p(v) ~ 1 / (v + 1): a dictionary is in order
        of frequency, and how many groups of tokens a batch touches depends on it."""
        features = torch.randn(tokens, dim).to(device).requires_grad_()
        # By the inverse of the distribution function: torch.multinomial ends at 2^24 tokens.
        mass = (1.0 / torch.arange(1, vocab + 1, dtype=torch.float64)).cumsum(0)
        points = torch.rand(tokens, dtype=torch.float64) * mass[-1]
        target = torch.searchsorted(mass, points, right=True).clamp_(max=vocab - 1)
        return cls(features, target.to(device))


class TrainStep:
    """Forward and backward of one output layer.

    Attributes:
        parameters: all that the step makes a gradient for, a tied embedding too.
        added: number of parameters that the layer adds to a model (a tied embedding is not counted).
    """

    def __init__(
        self,
        loss: Callable[[], Tensor],
        features: Tensor,
        parameters: Sequence[Tensor],
        added: int,
        head: OutputHead | None = None,
    ) -> None:
        self.loss = loss
        self.parameters = parameters
        self.added = added
        self._features = features
        self._head = head
        self._updates = 0

    def prepare(self) -> None:
        """As an optimiser's ``zero_grad`` leaves it: a step allocates its gradients."""
        self.release()
        self._updates += 1
        if self._head is not None:
            self._head.set_num_updates(self._updates)

    def run(self) -> None:
        self.loss().backward()

    def release(self) -> None:
        """Free the gradients."""
        for parameter in self.parameters:
            parameter.grad = None
        self._features.grad = None


def make_step(name: str, codebook: Codebook, batch: Batch, smoothing: bool, prototypes: int = 1) -> TrainStep:
    """The step of one of ``HEADS``. Weights are as initialised: normal, of standard deviation d ** -0.5,
    which is 0.044 for d = 512, as those of a trained layer. A cascade's groups have ``prototypes`` rows.

    Raises:
        MHEError: an unknown name, or this head cannot be made for this codebook.
    """
    if name not in HEADS:
        raise MHEError(f"there is no head {name!r} to measure; there are {', '.join(HEADS)}")
    x, y = batch.features, batch.target
    vocab, dim = len(codebook), x.size(1)
    if name == "softmax":
        weight = nn.Parameter((torch.randn(vocab, dim) * dim**-0.5).to(x.device))
        return TrainStep(lambda: dense_loss(weight, x, y, smoothing), x, [weight], weight.numel())
    embedding = None
    if name == "cascade-tied":
        embedding = nn.Embedding(vocab, dim)
        nn.init.normal_(embedding.weight, std=dim**-0.5)
        embedding.to(x.device)
    try:
        head = _make_head(name, dim, codebook, embedding, prototypes)
    except MHEError as error:
        raise MHEError(f"{HEADS[name]}, V = {vocab}: {error} (--heads leaves heads out)") from None
    head.to(x.device).train()
    parameters: list[Tensor] = list(head.parameters())
    if embedding is not None:
        parameters.append(embedding.weight)
    return TrainStep(lambda: head_loss(head, x, y, smoothing), x, parameters, head.output_parameters(), head)


def dense_loss(weight: Tensor, features: Tensor, target: Tensor, smoothing: bool) -> Tensor:
    """What fairseq does: output projection, ``log_softmax``, and ``label_smoothed_cross_entropy`` (without
    ``smoothing``, ``cross_entropy``). Shape: (V, d), (N, d), (N,) -> ()."""
    log_probs = F.log_softmax(F.linear(features, weight), dim=-1, dtype=torch.float32)
    nll = -log_probs.gather(dim=-1, index=target.unsqueeze(-1)).sum()
    if not smoothing:
        return nll
    smooth = -log_probs.sum(dim=-1, keepdim=True).sum()
    each = _smoothing_of_each(weight.size(0))
    return (1.0 - LABEL_SMOOTHING - each) * nll + each * smooth


def head_loss(head: OutputHead, features: Tensor, target: Tensor, smoothing: bool) -> Tensor:
    """What ``mhe_cross_entropy`` does, the same loss. Shape: (N, d), (N,) -> ()."""
    loss = head(features, target, smoothing=smoothing)
    nll: Tensor = loss.nll.sum()
    if loss.smooth is None:
        return nll
    each = _smoothing_of_each(head.vocab_size)
    return (1.0 - LABEL_SMOOTHING - each) * nll + each * head.vocab_size * loss.smooth.sum()


def _smoothing_of_each(vocab: int) -> float:
    return LABEL_SMOOTHING / max(1, vocab - 1)


def _make_head(
    name: str, dim: int, codebook: Codebook, embedding: nn.Embedding | None, prototypes: int
) -> OutputHead:
    if name == "product":
        return ProductHead(dim, codebook)
    if name == "mixture":
        return ProductHead(dim, codebook, mixtures=MIXTURES)
    if name in ("cascade", "cascade-tied"):
        return CascadeHead(dim, codebook, tied=embedding, group_prototypes=prototypes)
    if name in ("sampling", "sampling-predicted"):
        return SamplingHead(dim, codebook, variant="shared" if name == "sampling" else "predicted")
    raise AssertionError(f"no way to make {name}")
