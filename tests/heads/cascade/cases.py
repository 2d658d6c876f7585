"""Cascades to test: plain, with a bottleneck, and tied."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.cascade.head import CascadeHead
from tests.heads.oracle import codebooks

DIM = 6
KINDS = ("plain", "bottleneck", "tied")
every_kind = pytest.mark.parametrize("kind", KINDS)
small_books = codebooks(max_vocab=60, min_heads=2)
counts = st.sampled_from([0, 1, 2, 9])
seeds = st.integers(0, 999)
HOLED = Codebook((4, 3), torch.tensor([7, 0, 2, 8, 6, 10]))  # group 1 is empty, group 3 has one token
DEEP = Codebook((2, 3, 2), torch.tensor([1, 0, 4, 5, 8, 9, 11]))
both_depths = pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])


class Model(nn.Module):
    """A head, and the embedding that it may be tied to."""

    def __init__(self, kind: str, book: Codebook, dim: int = DIM, **kwargs: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(book), dim) if kind == "tied" else None
        bottleneck = max(1, dim // 2) if kind == "bottleneck" else None
        self.head = CascadeHead(dim, book, bottleneck=bottleneck, tied=self.embed, **kwargs)


def build(
    kind: str,
    book: Codebook,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    std: float = 1.0,
    **kwargs: Any,
) -> tuple[Model, CascadeHead]:
    torch.manual_seed(seed)
    model = Model(kind, book, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    model.to(dtype)
    return model, model.head


def gradients(model: nn.Module) -> dict[str, Tensor]:
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        grads[name] = parameter.grad
    return grads
