"""Rows of digits that are part of the input embeddings."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from mhe_fairseq.heads.rows.input_rows import MARK, rows_of_state
from tests.heads.oracle import codebooks

DIM = 3


def expected_cascade(head: CascadeHead, token: int, digits: list[list[int]]) -> Tensor:
    first = [each[0] for each in digits]
    if first.count(first[token]) == 1:
        return torch.zeros(DIM)
    count = head.group.prototypes
    own = range(first[token] * count, (first[token] + 1) * count)
    row = torch.stack([head.group.weight[i] for i in own]).sum(dim=0) / count**0.5
    if head.subgroup is not None:
        row = row + head.subgroup.table[first[token], digits[token][1]]
    return row


def expected_product(head: ProductHead, token: int, digits: list[list[int]]) -> Tensor:
    row, start = torch.zeros(DIM), 0
    for h, length in enumerate(head.codebook.lengths):
        value = digits[token][h]
        if [each[h] for each in digits].count(value) > 1:
            row = row + head.weight[start + value]
        start += length
    return row


@given(book=codebooks(max_vocab=40), seed=st.integers(0, 9))
def test_rows_gradients_and_what_is_saved(book: Codebook, seed: int) -> None:
    torch.manual_seed(seed)
    digits = book.digits(torch.arange(len(book))).tolist()
    heads: list[OutputHead] = [ProductHead(DIM, book, rows_in_input=True)]
    if book.heads in (2, 3):
        heads.append(CascadeHead(DIM, book, rows_in_input=True))
        heads.append(CascadeHead(DIM, book, rows_in_input=True, group_prototypes=3))
    tokens = torch.randint(len(book), (2, 5))
    for head in heads:
        rows = head.input_rows(tokens)
        assert rows is not None and rows.shape == (2, 5, DIM)
        for place, token in zip(rows.flatten(0, 1), tokens.flatten().tolist(), strict=True):
            if isinstance(head, CascadeHead):
                wanted = expected_cascade(head, token, digits)
            else:
                assert isinstance(head, ProductHead)
                wanted = expected_product(head, token, digits)
            torch.testing.assert_close(place, wanted)
        everything = head.input_rows(torch.arange(len(book)))
        saved = rows_of_state(head.state_dict(prefix="decoder.head."), "decoder.head.")
        assert saved is not None and everything is not None and torch.equal(saved, everything)
        weight = head.group.weight if isinstance(head, CascadeHead) else head.weight
        assert isinstance(weight, Tensor)
        weights = torch.randn_like(rows)
        found = torch.autograd.grad((rows * weights).sum(), weight)[0]
        # Rows are sums of parameters: the directional derivative along d is the sum for d as parameters.
        direction = torch.randn_like(weight)
        with torch.no_grad():
            weight.add_(direction)
            moved = head.input_rows(tokens)
        assert moved is not None
        torch.testing.assert_close(
            (found * direction).sum(), ((moved - rows) * weights).sum(), rtol=1e-3, atol=1e-4
        )


def test_heads_without_such_rows_add_nothing_and_save_no_mark() -> None:
    book = Codebook((3, 4), vocab_size=12)
    for head in (
        CascadeHead(DIM, book),
        ProductHead(DIM, book),
        SoftmaxHead(DIM, book),
        SamplingHead(DIM, book, groups=1),
    ):
        assert head.input_rows(torch.arange(12)) is None
        assert MARK not in head.state_dict()
        assert rows_of_state(head.state_dict(), "") is None
    with_rows = CascadeHead(DIM, book, rows_in_input=True)
    with pytest.raises(RuntimeError, match=MARK):
        with_rows.load_state_dict(CascadeHead(DIM, book).state_dict())


def test_rows_follow_an_adopted_codebook() -> None:
    order = torch.tensor([11, 0, 1, 2, 3, 4, 5, 6, 7, 8])
    embedding = nn.Embedding(10, DIM)
    trained = CascadeHead(DIM, Codebook((3, 4), order), tied=embedding, rows_in_input=True)
    restored = CascadeHead(DIM, Codebook((3, 4), vocab_size=10), tied=embedding, rows_in_input=True)
    restored.adopt_codebook = True
    restored.load_state_dict(trained.state_dict())
    wanted, found = trained.input_rows(torch.arange(10)), restored.input_rows(torch.arange(10))
    assert wanted is not None and found is not None and torch.equal(wanted, found)


def test_a_mixture_has_no_rows_that_could_be_in_the_input() -> None:
    with pytest.raises(MHEError, match="each of 2 mixture components has rows of its own"):
        ProductHead(DIM, Codebook((3, 4), vocab_size=12), mixtures=2, rows_in_input=True)
