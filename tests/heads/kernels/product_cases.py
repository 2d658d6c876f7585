"""Product heads, some of them tied to an embedding, and batches for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead
from tests.heads.oracle import features_for, targets_for

FLOAT = torch.float32
DIM = 12
#: Columns are read 16 at a time.
HOLED = Codebook((9, 37), vocab_size=320)
WHOLE = Codebook((6, 35))
DEEP = Codebook((3, 5, 18), vocab_size=250)

mixtures_1_or_3 = pytest.mark.parametrize("mixtures", [1, 3])


class Model(nn.Module):
    """A head, and the embedding that it is tied to."""

    def __init__(self, book: Codebook, mixtures: int, tied: bool, dim: int) -> None:
        super().__init__()
        embed = nn.Embedding(len(book), dim)
        self.head = ProductHead(dim, book, mixtures, tied=embed if tied else None)
        # Without groups of one token the embedding is not read.
        reads = self.head.singles is not None and len(self.head.singles.tokens)
        self.embed = embed if reads else None


def build(
    book: Codebook,
    mixtures: int = 1,
    dtype: torch.dtype = FLOAT,
    seed: int = 1,
    std: float = 0.5,
    tied: bool = False,
    dim: int = DIM,
) -> Model:
    torch.manual_seed(seed)
    model = Model(book, mixtures, tied, dim)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    return model.to(dtype).train()


def batch(book: Codebook, count: int, dtype: torch.dtype = FLOAT, seed: int = 1) -> tuple[Tensor, Tensor]:
    return features_for(count, DIM, dtype, seed), targets_for(book, count, seed)
