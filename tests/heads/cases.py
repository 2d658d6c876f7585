"""Every head, with the dense oracle to hold it against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, Margin, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from tests.heads.oracle import cascade_oracle, codebooks, product_oracle, softmax_oracle

DIM = 6
#: Of twelve: in 3 x 4 the group in the middle is empty, in 2 x 3 x 2 a subgroup of either group.
SLOTS = torch.tensor([8, 0, 11, 10, 2, 9, 1])


@dataclass(frozen=True)
class Case:
    """A head, and what to hold it against.

    Attributes:
        make: codebook, embedding -> head.
        oracle: head, features (N, d) -> (N, V) log-probabilities in float64.
        digits: the fewest and the most that the head takes.
        groups: it needs this many first digits with tokens.
        tied: the embedding's rows are the head's.
        max_vocab: oracles that go token by token take their time.
        exact_smoothing: the smoothing term is no estimate, in eval mode at least.
        sums_rows: rows may be sums of weights, which half precision rounds once more; the embedding is read
            where a first digit has one token, and gets a gradient only then.
        estimates: in training the loss is another, an estimate or one with a margin, so that only eval mode
            can be compared.
    """

    make: Callable[[Codebook, nn.Embedding], OutputHead]
    oracle: Callable[[Any, Tensor], Tensor]
    digits: tuple[int, int] = (1, 3)
    groups: int = 1
    tied: bool = False
    max_vocab: int = 600
    exact_smoothing: bool = False
    estimates: bool = False
    sums_rows: bool = False

    def codebooks(self, max_vocab: int = 2000) -> st.SearchStrategy[Codebook]:
        books = codebooks(min(max_vocab, self.max_vocab), *self.digits)
        if self.groups == 1:
            return books
        return books.filter(
            lambda book: len(book.digits(torch.arange(len(book)))[:, 0].unique()) >= self.groups
        )

    def lengths(self) -> list[tuple[int, ...]]:
        """Lengths of twelve slots, of every number of digits above one that the head takes."""
        return [
            lengths for lengths in ((3, 4), (2, 3, 2)) if self.digits[0] <= len(lengths) <= self.digits[1]
        ]


CASES: dict[str, Case] = {
    "softmax": Case(
        lambda book, _: SoftmaxHead(DIM, book), softmax_oracle, max_vocab=2000, exact_smoothing=True
    ),
    "softmax chunked": Case(
        lambda book, _: SoftmaxHead(DIM, book, chunk=3), softmax_oracle, exact_smoothing=True
    ),
    "softmax tied": Case(
        lambda book, embed: SoftmaxHead(DIM, book, tied=embed),
        softmax_oracle,
        tied=True,
        exact_smoothing=True,
    ),
    "product": Case(
        lambda book, _: ProductHead(DIM, book), product_oracle, max_vocab=2000, exact_smoothing=True
    ),
    "mixture": Case(lambda book, _: ProductHead(DIM, book, mixtures=3), product_oracle, max_vocab=2000),
    "product tied": Case(
        lambda book, embed: ProductHead(DIM, book, tied=embed), product_oracle, tied=True, max_vocab=2000,
        exact_smoothing=True, sums_rows=True,
    ),
    "mixture tied": Case(
        lambda book, embed: ProductHead(DIM, book, mixtures=3, tied=embed), product_oracle, tied=True,
        max_vocab=2000, sums_rows=True,
    ),
    "cascade": Case(lambda book, _: CascadeHead(DIM, book), cascade_oracle, digits=(2, 2)),
    "cascade of three digits": Case(lambda book, _: CascadeHead(DIM, book), cascade_oracle, digits=(3, 3)),
    "cascade bottleneck": Case(
        lambda book, _: CascadeHead(DIM, book, bottleneck=3), cascade_oracle, digits=(2, 3)
    ),
    "cascade tied": Case(
        lambda book, embed: CascadeHead(DIM, book, tied=embed), cascade_oracle, digits=(2, 3), tied=True
    ),
    "cascade tied groups": Case(
        lambda book, embed: CascadeHead(DIM, book, tied=embed, tied_groups=embed), cascade_oracle,
        digits=(2, 3), tied=True, sums_rows=True,
    ),
    "cascade bottleneck tied groups": Case(
        lambda book, embed: CascadeHead(DIM, book, bottleneck=3, tied_groups=embed), cascade_oracle,
        digits=(2, 3), tied=True, sums_rows=True,
    ),
    "cascade prototypes": Case(
        lambda book, embed: CascadeHead(DIM, book, tied=embed, tied_groups=embed, group_prototypes=3),
        cascade_oracle, digits=(2, 3), tied=True, sums_rows=True,
    ),
    "cascade per-level": Case(
        lambda book, _: CascadeHead(DIM, book, smoothing_form="per-level"), cascade_oracle, digits=(2, 3)
    ),
    "sampling": Case(
        lambda book, _: SamplingHead(DIM, book, groups=1), softmax_oracle, digits=(2, 3), groups=2,
        exact_smoothing=True, estimates=True,
    ),
    "sampling tied": Case(
        lambda book, embed: SamplingHead(DIM, book, groups=1, tied=embed), softmax_oracle, digits=(2, 3),
        groups=2, tied=True, exact_smoothing=True, estimates=True,
    ),
    # Not ArcFace's, whose loss jumps at one angle, where half precision may be on either side.
    "softmax margin": Case(
        lambda book, _: SoftmaxHead(DIM, book, margin=Margin("cosface", 4.0)), softmax_oracle, max_vocab=200,
        exact_smoothing=True, estimates=True,
    ),
    "sampling margin": Case(
        lambda book, embed: SamplingHead(DIM, book, groups=1, tied=embed, margin=Margin("cosface", 4.0)),
        softmax_oracle, digits=(2, 3), groups=2, tied=True, max_vocab=200, exact_smoothing=True,
        estimates=True,
    ),
}  # fmt: skip
every_head = pytest.mark.parametrize("name", CASES)
every_head_and_lengths = pytest.mark.parametrize(
    ("name", "lengths"), [(name, lengths) for name, case in CASES.items() for lengths in case.lengths()]
)


class Model(nn.Module):
    """A head, and the embedding that it is tied to."""

    def __init__(self, case: Case, book: Codebook) -> None:
        super().__init__()
        embed = nn.Embedding(len(book), DIM)
        self.embed = embed if case.tied else None
        self.head = case.make(book, embed)


def build_model(
    name: str, book: Codebook, dtype: torch.dtype = torch.float64, seed: int = 1, std: float = 1.0
) -> Model:
    torch.manual_seed(seed)
    model = Model(CASES[name], book)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.to(dtype).eval()


def build(
    name: str, book: Codebook, dtype: torch.dtype = torch.float64, seed: int = 1, std: float = 1.0
) -> OutputHead:
    """The head of ``build_model``, in eval mode."""
    return build_model(name, book, dtype, seed, std).head
