"""Input embeddings with the rows that the output layer adds."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, SoftmaxHead
from mhe_fairseq.models.digit_embedding import DigitEmbedding

BOOK = Codebook((3, 4), vocab_size=10)
DIM = 5


def make() -> tuple[DigitEmbedding, CascadeHead]:
    torch.manual_seed(1)
    embedding = DigitEmbedding.of(nn.Embedding(10, DIM, padding_idx=1))
    assert isinstance(embedding, DigitEmbedding)
    head = CascadeHead(DIM, BOOK, tied=embedding, tied_groups=embedding, rows_in_input=True)
    embedding.follow(head)
    return embedding, head


def test_without_a_head_it_is_what_it_was_made_of() -> None:
    torch.manual_seed(1)
    plain = nn.Embedding(10, DIM, padding_idx=1)
    state = torch.get_rng_state()
    embedding = DigitEmbedding.of(plain)
    assert torch.equal(state, torch.get_rng_state()), "the models' initial weights must not depend on it"
    tokens = torch.randint(10, (2, 3))
    assert torch.equal(embedding(tokens), plain(tokens))
    assert isinstance(embedding, nn.Embedding) and embedding.padding_idx == 1
    assert embedding.state_dict().keys() == plain.state_dict().keys()
    other = nn.Linear(2, 2)
    assert DigitEmbedding.of(other) is other


def test_the_heads_rows_are_added() -> None:
    embedding, head = make()
    tokens = torch.tensor([[0, 4, 9], [3, 3, 1]])
    torch.testing.assert_close(embedding(tokens), embedding.weight[tokens] + head.group.weight[tokens // 4])
    embedding(tokens).sum().backward()
    assert head.group.weight.grad is not None
    assert head.group.weight.grad[:, 0].tolist() == [4.0, 1.0, 1.0]
    assert list(embedding.state_dict()) == ["weight"] and len(list(embedding.parameters())) == 1


def test_a_head_without_such_rows() -> None:
    embedding, _ = make()
    embedding.follow(SoftmaxHead(DIM, BOOK, tied=embedding))
    assert torch.equal(embedding(torch.arange(10)), embedding.weight)


def test_a_copy_of_a_model_reads_its_own_head() -> None:
    embedding, head = make()
    twin = copy.deepcopy(nn.ModuleDict({"embedding": embedding, "head": head}))
    with torch.no_grad():
        head.group.weight.add_(1.0)
    moved = embedding(torch.arange(10)) - twin["embedding"](torch.arange(10))
    torch.testing.assert_close(moved, torch.ones(10, DIM))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    embedding, head = make()
    model = nn.ModuleDict({"embedding": embedding, "head": head}).to(dtype)
    assert model["embedding"](torch.arange(10)).dtype == dtype
