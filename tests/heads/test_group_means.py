"""Means of embeddings by first digit, kept while the embedding stays the same."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.heads.group_means import GroupMeans
from tests.heads.oracle import codebooks

DIM = 3


def make(book: Codebook, seed: int = 1) -> tuple[nn.Embedding, GroupMeans]:
    torch.manual_seed(seed)
    embedding = nn.Embedding(len(book), DIM).double()
    return embedding, GroupMeans(embedding, book)


@given(book=codebooks(max_vocab=100), seed=st.integers(0, 9))
def test_means_and_their_gradient(book: Codebook, seed: int) -> None:
    embedding, means = make(book, seed)
    rows = means()
    first = book.digits(torch.arange(len(book)))[:, 0]
    weights = torch.randn(book.lengths[0], DIM, dtype=torch.float64)
    (rows * weights).sum().backward()
    assert embedding.weight.grad is not None
    for digit in range(book.lengths[0]):
        tokens = first == digit
        count = int(tokens.sum())
        if not count:
            assert not bool(rows[digit].any())
            continue
        torch.testing.assert_close(rows[digit], embedding.weight[tokens].mean(dim=0))
        expected = (weights[digit] / count).expand(count, -1)
        torch.testing.assert_close(embedding.weight.grad[tokens], expected)


@torch.no_grad()
def test_means_are_kept_until_the_embedding_changes() -> None:
    embedding, means = make(Codebook((3, 4), vocab_size=11))
    means.eval()
    rows = means()
    assert means() is rows
    embedding.weight.add_(1.0)
    torch.testing.assert_close(means(), rows + 1.0)
    embedding.load_state_dict({"weight": torch.zeros(11, DIM)})
    assert not bool(means().any())
    embedding.float()
    assert means().dtype == torch.float32
    means.regroup(Codebook((3, 4), slots=torch.arange(11).flip(0)))
    embedding.weight.copy_(torch.arange(11.0).unsqueeze(1).expand(-1, DIM))
    assert means()[0, 0] == 8.5, "the last four tokens"


def test_what_is_kept_has_no_gradient_to_lose() -> None:
    embedding, means = make(Codebook((3, 4), vocab_size=11))
    means.eval()
    with torch.no_grad():
        means()
    means().sum().backward()
    assert embedding.weight.grad is not None


def test_the_embedding_stays_the_models() -> None:
    book = Codebook((3, 4), vocab_size=11)
    head = ProductHead(DIM, book, tied=nn.Embedding(11, DIM))
    own = ProductHead(DIM, book)
    assert set(head.state_dict()) == set(own.state_dict())
    assert head.output_parameters() == own.output_parameters()


def test_a_new_head_starts_at_the_means() -> None:
    embedding = nn.Embedding(11, DIM)
    head = ProductHead(DIM, Codebook((3, 4), vocab_size=11), mixtures=2, tied=embedding)
    assert head.means is not None
    torch.testing.assert_close(head.rows()[:3], head.means())
    torch.testing.assert_close(head.rows()[3:6], head.means())
    assert bool(head.rows()[6:].any())


def test_an_embedding_of_another_shape_is_refused() -> None:
    with pytest.raises(
        MHEError, match=r"11 tokens x 3 dimensions cannot be tied to an embedding of \(12, 3\)"
    ):
        ProductHead(DIM, Codebook((3, 4), vocab_size=11), tied=nn.Embedding(12, DIM))
