"""Rows of first digits with one token, tied to its embedding."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, ProductHead
from mhe_fairseq.heads.rows.single_rows import SingleRows
from tests.heads.oracle import codebooks

DIM = 3
#: Of 3 x 4: the first digit has one token, 1, the second none, the third two.
BOOK = Codebook((3, 4), torch.tensor([8, 0, 11]))


def make(book: Codebook, copies: int = 1, seed: int = 1) -> tuple[nn.Embedding, SingleRows]:
    torch.manual_seed(seed)
    embedding = nn.Embedding(len(book), DIM).double()
    return embedding, SingleRows(embedding, book, DIM, copies)


def test_a_head_made_in_inference_mode_searches() -> None:
    """Its parameters do not count what is written into them."""
    x = torch.randn(2, DIM, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        embedding = nn.Embedding(len(BOOK), DIM)
        head = CascadeHead(DIM, BOOK, tied_groups=embedding).eval()
        before = head.log_probs(x)
        head.group.weight.mul_(3.0)
        after = head.log_probs(x)
        assert torch.equal(head.topk(x, 3)[0], after.topk(3).values)
    assert not torch.equal(before, after)


@given(book=codebooks(max_vocab=40), copies=st.integers(1, 3), seed=st.integers(0, 9))
def test_rows_and_gradients(book: Codebook, copies: int, seed: int) -> None:
    embedding, singles = make(book, copies, seed)
    length = book.lengths[0]
    own = torch.randn(copies * length + 2, DIM, dtype=torch.float64, requires_grad=True)
    first = book.digits(torch.arange(len(book)))[:, 0].tolist()
    single = {token: digit for token, digit in enumerate(first) if first.count(digit) == 1}
    rows = singles(own)
    weights = torch.randn_like(rows)
    (rows * weights).sum().backward()
    expected = own.detach().clone()
    gradient = torch.zeros_like(embedding.weight)
    for copy in range(copies):
        for token, digit in single.items():
            expected[copy * length + digit] += embedding.weight[token]
            gradient[token] += weights[copy * length + digit]
    torch.testing.assert_close(rows, expected, check_dtype=False)
    assert own.grad is not None
    torch.testing.assert_close(own.grad, weights)
    if single:
        assert embedding.weight.grad is not None
        torch.testing.assert_close(embedding.weight.grad, gradient)
    else:
        assert embedding.weight.grad is None and rows is own


@torch.no_grad()
def test_sums_are_kept_until_an_addend_changes() -> None:
    embedding, singles = make(BOOK)
    own = nn.Parameter(torch.zeros(3, DIM, dtype=torch.float64))
    singles.eval()
    rows = singles(own)
    assert singles(own) is rows
    assert singles(nn.Parameter(own.data)) is not rows
    embedding.weight.add_(1.0)
    torch.testing.assert_close(singles(own)[0], rows[0] + 1.0)
    own[0] = 5.0
    torch.testing.assert_close(singles(own)[0], rows[0] + 6.0)
    embedding.load_state_dict({"weight": torch.zeros(3, DIM)})
    assert singles(own)[0].tolist() == [5.0] * DIM
    assert singles(own.float()).dtype == torch.float32
    singles.regroup(Codebook((3, 4), torch.tensor([0, 1, 11])))
    embedding.weight[2] = 7.0
    assert singles(own)[:, 0].tolist() == [5.0, 0.0, 7.0]


def test_nothing_is_kept_of_what_stands_for_parameters() -> None:
    """Which may have no address, or be gone when others come to lie where they were."""
    embedding, singles = make(BOOK)
    own = torch.zeros(3, DIM, dtype=torch.float64)
    singles.eval()

    def rows(weight: Tensor, own: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.func.functional_call(
                _Named(embedding, singles), {"embedding.weight": weight}, (own,)
            )

    weight = embedding.weight.detach()
    for scale in (1.0, 2.0):
        changed = scale * weight
        torch.testing.assert_close(rows(changed, own)[0], changed[1])
        seen = torch.func.grad(lambda x: (x.sum(), rows(x, own)), has_aux=True)(changed)[1]  # noqa: B023
        torch.testing.assert_close(seen[0], changed[1])
        assert singles._kept is None


class _Named(nn.Module):
    def __init__(self, embedding: nn.Embedding, singles: SingleRows) -> None:
        super().__init__()
        self.embedding, self.singles = embedding, singles

    def forward(self, own: Tensor) -> Tensor:
        rows: Tensor = self.singles(own)
        return rows


def test_what_is_kept_has_no_gradient_to_lose() -> None:
    embedding, singles = make(BOOK)
    own = torch.zeros(3, DIM, dtype=torch.float64, requires_grad=True)
    singles.eval()
    with torch.no_grad():
        singles(own)
    singles(own).sum().backward()
    assert embedding.weight.grad is not None and own.grad is not None


def test_the_embedding_stays_the_models() -> None:
    embedding = nn.Embedding(3, DIM)
    for tied, own in (
        (ProductHead(DIM, BOOK, tied=embedding), ProductHead(DIM, BOOK)),
        (CascadeHead(DIM, BOOK, tied_groups=embedding), CascadeHead(DIM, BOOK)),
    ):
        assert set(tied.state_dict()) == set(own.state_dict())
        assert tied.output_parameters() == own.output_parameters()


def test_a_new_heads_single_rows_are_the_embeddings() -> None:
    embedding = nn.Embedding(3, DIM)
    product = ProductHead(DIM, BOOK, mixtures=2, tied=embedding)
    rows = product.rows()
    for row in (rows[0], rows[3]):
        torch.testing.assert_close(row, embedding.weight[1])
    assert bool(rows[1:3].all()) and bool(rows[4:].all()), "the others have rows of their own"
    cascade = CascadeHead(DIM, BOOK, tied_groups=embedding)
    x = torch.randn(4, DIM)
    torch.testing.assert_close(cascade.group(x)[:, 0], x @ embedding.weight[1])
    assert bool(cascade.group.weight[1:].all())


@pytest.mark.parametrize("head", [ProductHead, CascadeHead])
def test_an_embedding_of_another_shape_is_refused(head: type) -> None:
    name = "tied" if head is ProductHead else "tied_groups"
    with pytest.raises(MHEError, match=r"3 tokens x 3 dimensions cannot be tied to an embedding of \(4, 3\)"):
        head(DIM, BOOK, **{name: nn.Embedding(4, DIM)})
