"""SoftmaxHead: the plain projection, whole or in chunks, owned or tied."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import SoftmaxHead, softmax
from tests.heads.oracle import features_for, softmax_oracle

DIM, VOCAB = 6, 37
BOOK = Codebook((5, 8), vocab_size=VOCAB)


def targets_for(count: int, seed: int = 0) -> Tensor:
    return torch.randint(VOCAB, (count,), generator=torch.Generator().manual_seed(seed))


def build(
    chunk: int = 0, dtype: torch.dtype = torch.float64, tied: nn.Embedding | None = None
) -> SoftmaxHead:
    torch.manual_seed(1)
    head = SoftmaxHead(DIM, BOOK, tied=tied, chunk=chunk)
    nn.init.normal_(head.table.weight)
    return head.to(dtype)


@pytest.mark.parametrize("chunk", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(count=st.integers(0, 9), seed=st.integers(0, 99))
def test_smoothing_is_the_exact_mean(chunk: int, dtype: torch.dtype, count: int, seed: int) -> None:
    head, features = build(chunk, dtype), features_for(count, DIM, dtype, seed)
    expected = -softmax_oracle(head, features).mean(dim=-1)
    loss = head(features, targets_for(count, seed))
    assert loss.smooth.dtype == loss.nll.dtype == dtype
    tolerance = 1e-10 if dtype == torch.float64 else 2e-5
    torch.testing.assert_close(loss.smooth.double(), expected, atol=tolerance, rtol=tolerance)
    assert head(features, targets_for(count, seed), smoothing=False).smooth is None


def results(chunk: int, count: int, dtype: torch.dtype) -> list[Tensor]:
    """Loss, smoothing term, accuracy, and the gradients of the features and the weight."""
    head, features = build(chunk, dtype), features_for(count, DIM, dtype, 0).requires_grad_()
    loss = head(features, targets_for(count), accuracy=True)
    ((loss.nll + 0.1 * loss.smooth) * torch.arange(1, count + 1)).sum().backward()
    weight_grad, features_grad = head.table.weight.grad, features.grad
    assert weight_grad is not None and features_grad is not None
    return [loss.nll, loss.smooth, loss.stats["accuracy"], features_grad, weight_grad]


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="this torch is without it in every test"
)
@pytest.mark.parametrize("chunk", [0, 3])
def test_a_torch_without_linear_cross_entropy(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with_it = results(chunk, 9, torch.float32)
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy")
    for found, expected in zip(results(chunk, 9, torch.float32), with_it, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [0, 1, 7, 9])
@pytest.mark.parametrize("chunk", [1, 3, 7, 100])
def test_chunks_change_nothing(chunk: int, count: int, dtype: torch.dtype) -> None:
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1}[dtype]
    for chunked, dense in zip(results(chunk, count, dtype), results(0, count, dtype), strict=True):
        assert chunked.dtype == dense.dtype
        torch.testing.assert_close(chunked, dense, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("chunk", "widest"), [(0, [10]), (4, [4, 4, 2]), (20, [10])])
def test_no_more_rows_of_logits_than_a_chunk(
    monkeypatch: pytest.MonkeyPatch, chunk: int, widest: list[int]
) -> None:
    rows: list[int] = []
    nll = softmax._nll

    def noting(features: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        rows.append(features.size(0))
        return nll(features, weight, target)

    monkeypatch.setattr(softmax, "_nll", noting)
    loss = build(chunk)(features_for(10, DIM, torch.float64, 0), targets_for(10))
    assert rows == widest
    loss.nll.sum().backward()  # chunks are computed again, not kept
    assert sorted(rows) == sorted(widest * (2 if len(widest) > 1 else 1))


def test_chunks_without_gradients() -> None:
    features, target = features_for(8, DIM, torch.float64, 0), targets_for(8)
    with torch.no_grad():
        torch.testing.assert_close(build(3)(features, target).nll, build()(features, target).nll)


def test_a_tied_embedding_learns_and_is_saved_once() -> None:
    embedding = nn.Embedding(VOCAB, DIM, dtype=torch.float64)
    head = build(tied=embedding)
    assert head.table.is_tied and head.table.weight is embedding.weight
    assert set(head.state_dict()) == {"codebook_slots", "codebook_lengths"}
    assert list(head.parameters()) == [] and head.output_parameters() == 0
    features, target = features_for(5, DIM, torch.float64, 0), targets_for(5)
    head(features, target).nll.sum().backward()
    gradient = embedding.weight.grad
    assert gradient is not None

    own = build()
    with torch.no_grad():
        own.table.weight.copy_(embedding.weight)
    own(features, target).nll.sum().backward()
    torch.testing.assert_close(gradient, own.table.weight.grad)
    assert set(own.state_dict()) == {"codebook_slots", "codebook_lengths", "table.linear.weight"}
    assert own.output_parameters() == VOCAB * DIM


def test_the_seed_gives_the_weights_of_fairseqs_projection() -> None:
    torch.manual_seed(5)
    head = SoftmaxHead(DIM, BOOK)
    after = torch.rand(3)
    torch.manual_seed(5)
    projection = nn.Linear(DIM, VOCAB, bias=False)  # TransformerDecoder.build_output_projection
    nn.init.normal_(projection.weight, mean=0, std=DIM**-0.5)
    assert torch.equal(head.table.weight, projection.weight)
    assert torch.equal(torch.rand(3), after)


def test_a_tied_head_draws_nothing() -> None:
    embedding = nn.Embedding(VOCAB, DIM)
    state = torch.get_rng_state()
    SoftmaxHead(DIM, BOOK, tied=embedding)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_negative_chunk_is_refused() -> None:
    with pytest.raises(MHEError) as caught:
        SoftmaxHead(DIM, BOOK, chunk=-1)
    assert str(caught.value) == "chunk is a number of rows, 0 for all at once; got -1"


def test_an_embedding_of_another_size_is_refused() -> None:
    with pytest.raises(
        MHEError, match=r"37 tokens x 6 dimensions cannot be tied to an embedding of \(36, 6\)"
    ):
        SoftmaxHead(DIM, BOOK, tied=nn.Embedding(VOCAB - 1, DIM))
