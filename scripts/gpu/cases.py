"""The heads that are looked at on a GPU: how each is made, and a batch for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook, plan_lengths
from mhe_fairseq.heads import CascadeHead, HeadLoss, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from scripts.gpu.idle import LARGE, Idle

MIXTURES = 8

#: Weight of the smoothing term in a step's loss.
SMOOTHING = 0.1

#: Groups of one token in a codebook with such groups.
SINGLES = 4

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Kind:
    """A head as people use it.

    Attributes:
        make: d, codebook, an embedding that it may be tied to -> head.
        digits: of its codebook.
        tied: the embedding's rows are the head's.
        singles: it treats groups of one token in a way of their own, so its codebook has some.
        kernels: its loss has kernels.
    """

    make: Callable[[int, Codebook, nn.Embedding], OutputHead]
    digits: int = 2
    tied: bool = False
    singles: bool = False
    kernels: bool = True


KINDS: dict[str, Kind] = {
    "cascade": Kind(lambda dim, book, _: CascadeHead(dim, book)),
    "cascade-tied": Kind(lambda dim, book, embed: CascadeHead(dim, book, tied=embed), tied=True),
    "product": Kind(lambda dim, book, _: ProductHead(dim, book)),
    "mixture": Kind(lambda dim, book, _: ProductHead(dim, book, mixtures=MIXTURES)),
    "sampling": Kind(lambda dim, book, _: SamplingHead(dim, book)),
    "sampling-tied": Kind(lambda dim, book, embed: SamplingHead(dim, book, tied=embed), tied=True),
    "sampling-predicted": Kind(lambda dim, book, _: SamplingHead(dim, book, variant="predicted")),
    "cascade-3": Kind(lambda dim, book, _: CascadeHead(dim, book), digits=3),
    "cascade-3-tied": Kind(lambda dim, book, embed: CascadeHead(dim, book, tied=embed), digits=3, tied=True),
    "cascade-bottleneck": Kind(lambda dim, book, _: CascadeHead(dim, book, bottleneck=max(1, dim // 4))),
    "cascade-per-level": Kind(lambda dim, book, _: CascadeHead(dim, book, smoothing_form="per-level")),
    "cascade-prototypes": Kind(lambda dim, book, _: CascadeHead(dim, book, group_prototypes=4)),
    "cascade-singles": Kind(
        lambda dim, book, embed: CascadeHead(dim, book, tied=embed, tied_groups=embed),
        tied=True, singles=True,
    ),
    "product-3": Kind(lambda dim, book, _: ProductHead(dim, book), digits=3),
    "product-tied": Kind(
        lambda dim, book, embed: ProductHead(dim, book, tied=embed), tied=True, singles=True
    ),
    "mixture-tied": Kind(
        lambda dim, book, embed: ProductHead(dim, book, mixtures=MIXTURES, tied=embed),
        tied=True, singles=True,
    ),
    "softmax": Kind(lambda dim, book, _: SoftmaxHead(dim, book), kernels=False),
    "softmax-tied": Kind(
        lambda dim, book, embed: SoftmaxHead(dim, book, tied=embed), tied=True, kernels=False
    ),
}  # fmt: skip

#: Those whose time matters most, in this order.
MAIN = ("cascade", "cascade-tied", "product", "mixture", "sampling", "sampling-tied", "sampling-predicted")


@lru_cache(maxsize=8)
def make_codebook(vocab: int, digits: int = 2, singles: bool = False, shuffled: bool = False) -> Codebook:
    """A codebook of the lengths that are planned for this vocabulary; slots that are left are holes.

    Args:
        vocab: V.
        digits: H.
        singles: four groups more, of one token each.
        shuffled: tokens are in no order, so that rows which belong together lie apart in a tied table.
    """
    lengths = plan_lengths(vocab - SINGLES if singles else vocab, digits)
    if singles:
        lengths = (lengths[0] + SINGLES, *lengths[1:])
        width = lengths[1] if digits == 2 else lengths[1] * lengths[2]
        rest = SINGLES * width + torch.arange(vocab - SINGLES)
        slots = torch.cat([torch.arange(SINGLES) * width, rest])
    else:
        slots = torch.arange(vocab)
    if shuffled:
        slots = slots[torch.randperm(vocab, generator=torch.Generator().manual_seed(1))]
    return Codebook(lengths, slots)


class Model(nn.Module):
    """A head, and the embedding that it may be tied to."""

    def __init__(self, kind: Kind, dim: int, book: Codebook) -> None:
        super().__init__()
        embed = nn.Embedding(len(book) if kind.tied else 1, dim)
        nn.init.normal_(embed.weight, std=dim**-0.5)
        self.embed = embed if kind.tied else None
        self.head = kind.make(dim, book, embed)


@dataclass(frozen=True)
class Shape:
    """Sizes of a case: V, d and N, and the type by its name ("amp": weights of fp32, features of bf16)."""

    vocab: int
    dim: int
    tokens: int
    dtype: str = "bf16"

    @property
    def features(self) -> torch.dtype:
        return DTYPES["bf16" if self.dtype == "amp" else self.dtype]

    @property
    def weights(self) -> torch.dtype:
        return DTYPES["fp32" if self.dtype == "amp" else self.dtype]

    def autocast(self, device: torch.device) -> AbstractContextManager[object]:
        return torch.autocast(device.type, self.features) if self.dtype == "amp" else nullcontext()


class Case:
    """A head with a batch: its step is a forward and a backward pass.

    Args:
        name: of ``KINDS``.
        shape: sizes.
        device: where.
        seed: of weights, features and targets.
        shuffled: of the codebook, see ``make_codebook``.
        fill: False leaves large tables as they are, for looking at what would be done with them.
    """

    def __init__(
        self,
        name: str,
        shape: Shape,
        device: torch.device,
        seed: int = 1,
        shuffled: bool = False,
        fill: bool = True,
    ) -> None:
        kind = KINDS[name]
        self.name, self.shape, self.device = name, shape, device
        torch.manual_seed(seed)
        book = make_codebook(shape.vocab, kind.digits, kind.singles, shuffled)
        with Idle():
            self.model = Model(kind, shape.dim, book).to(device, shape.weights).train()
        for parameter in self.model.parameters():
            # Where it is: numbers for a million rows take a CPU many seconds.
            if parameter.numel() > LARGE and fill:
                nn.init.normal_(parameter, std=shape.dim**-0.5)
        self.updates = 0
        self.batch(shape.tokens, seed)

    @property
    def head(self) -> OutputHead:
        return self.model.head

    def batch(self, tokens: int, seed: int = 1) -> None:
        """Take another batch. Targets are frequent for small tokens, as in text."""
        generator = torch.Generator().manual_seed(seed)
        vocab = self.shape.vocab
        features = torch.randn(tokens, self.shape.dim, generator=generator)
        self.features = features.to(self.device, self.shape.features).requires_grad_()
        target = (torch.rand(tokens, generator=generator, dtype=torch.float64) ** 4 * vocab).long()
        self.target = target.clamp_(max=vocab - 1).to(self.device)

    def prepare(self) -> None:
        """Before a step: no gradients, and the next update's samples."""
        self.release()
        self.updates += 1
        self.head.set_num_updates(self.updates)

    def forward(self, smoothing: bool = True) -> HeadLoss:
        with self.shape.autocast(self.device):
            loss: HeadLoss = self.head(self.features, self.target, smoothing=smoothing)
        return loss

    def run(self, smoothing: bool = True) -> None:
        """A step: the loss as the criterion makes it, and its gradients."""
        loss = self.forward(smoothing)
        total = loss.nll.sum()
        if loss.smooth is not None:
            total = (1.0 - SMOOTHING) * total + SMOOTHING * loss.smooth.sum()
        total.backward()

    @torch.no_grad()
    def search(self, beam: int = 5) -> None:
        """A step of beam search, the best token of each row, and log-probabilities of tokens of its own."""
        self.head.eval()
        x = self.features.detach()[: len(self.features) // beam * beam]
        special = torch.arange(4, device=self.device)
        log_probs = torch.empty(len(x), 4 + 2 * beam, device=self.device)
        table = torch.zeros(log_probs.shape, dtype=torch.long, device=self.device)
        reading = self.head.read(x)
        reading.begin(log_probs, table, special)
        reading.finish(log_probs, table, special, torch.zeros(len(x), device=self.device), beam)
        self.head.topk(x, 1)
        self.head.log_prob_of(x, table[:, :2])
        self.head.train()

    def release(self) -> None:
        self.features.grad = None
        for parameter in self.model.parameters():
            parameter.grad = None

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Name and gradient of the features and of all parameters that have one."""
        if self.features.grad is not None:
            yield "features", self.features.grad
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                yield name.removeprefix("head."), parameter.grad
