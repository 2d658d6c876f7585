"""Rows with several labels: the loss of every head, and its best labels."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import OutputHead, SamplingHead, SoftmaxHead
from mhe_fairseq.heads.labels import padded_labels
from tests.heads.cascade.cases import DIM, HOLED, both_depths, build, every_kind, seeds, small_books
from tests.heads.cases import CASES, SLOTS, Case
from tests.heads.oracle import features_for

BOOKS = {2: Codebook((3, 4), SLOTS), 3: Codebook((2, 3, 2), SLOTS)}
ROWS = [[3, 0, 5], [], [6], [1, 2]]


def of_log_probs(head: OutputHead, features: Tensor, labels: list[list[int]]) -> Tensor:
    """The loss, by definition."""
    table = head.log_probs(features)
    return torch.stack([-table[i, row].sum() for i, row in enumerate(labels)])


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("softmax")])
def test_loss_is_that_of_every_label(name: str) -> None:
    case: Case = CASES[name]
    torch.manual_seed(1)
    for digits in range(max(2, case.digits[0]), case.digits[1] + 1):
        book = BOOKS[digits]
        embed = nn.Embedding(len(book), DIM)
        head = case.make(book, embed).double().eval()
        embed.double()
        features = torch.randn(4, DIM, dtype=torch.float64)
        expected = of_log_probs(head, features, ROWS)
        torch.testing.assert_close(head.label_loss(features, ROWS), expected)
        torch.testing.assert_close(head.label_loss(features, padded_labels(ROWS, 4, 7)), expected)
        assert head.label_loss(features[:0], []).shape == (0,)
        scores, labels = head.label_topk(features, 3)
        best = head.log_probs(features).topk(3)
        torch.testing.assert_close(scores, best.values)
        assert torch.equal(labels, best.indices)


@every_kind
@given(book=small_books, seed=seeds, data=st.data())
def test_a_cascades_gradients_are_those_of_pairs(
    kind: str, book: Codebook, seed: int, data: st.DataObject
) -> None:
    """Groups that a row's labels share are opened once; the loss is as if each label were a row."""
    model, head = build(kind, book, seed=seed)
    features = features_for(3, DIM, torch.float64, seed).requires_grad_()
    label = st.integers(0, len(book) - 1)
    rows = data.draw(st.lists(st.lists(label, max_size=6, unique=True), min_size=3, max_size=3))
    given_, expected = head.label_loss(features, rows), OutputHead.label_loss(head, features, rows)
    torch.testing.assert_close(given_, expected)
    leaves = [features, *model.parameters()]
    for one, other in zip(
        torch.autograd.grad(given_.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)


@both_depths
def test_every_parameter_has_a_gradient_without_labels(book: Codebook) -> None:
    model, head = build("plain", book)
    head.label_loss(features_for(2, DIM, torch.float64, 1), [[], []]).sum().backward()
    assert all(each.grad is not None and not each.grad.any() for each in model.parameters())


@pytest.mark.parametrize("chunk", [0, 2])
def test_a_softmax_is_one_against_all(chunk: int) -> None:
    torch.manual_seed(1)
    head = SoftmaxHead(DIM, BOOKS[2], chunk=chunk).double()
    features = torch.randn(4, DIM, dtype=torch.float64, requires_grad=True)
    logits = features @ head.table.weight.T
    right = torch.zeros(4, 7, dtype=torch.float64)
    for i, row in enumerate(ROWS):
        right[i, row] = 1.0
    expected = nn.functional.binary_cross_entropy_with_logits(logits, right, reduction="none").sum(dim=1)
    loss = head.label_loss(features, ROWS)
    torch.testing.assert_close(loss, expected)
    leaves = [features, head.table.weight]
    for one, other in zip(
        torch.autograd.grad(loss.sum(), leaves), torch.autograd.grad(expected.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(one, other)
    scores, labels = head.label_topk(features, 2)
    best = logits.sigmoid().topk(2)
    torch.testing.assert_close(scores.exp(), best.values)
    assert torch.equal(labels, best.indices)


def test_a_sampling_head_estimates_it_in_training() -> None:
    torch.manual_seed(1)
    book = Codebook((20, 5))
    head = SamplingHead(DIM, book, groups=8).double()
    features, rows = torch.randn(4, DIM, dtype=torch.float64), [[3, 70], [99], [], [5, 6, 41]]
    exact = of_log_probs(head, features, rows)
    torch.testing.assert_close(head.eval().label_loss(features, rows), exact)
    head.train()
    estimates = []
    for update in range(200):
        head.set_num_updates(update)
        estimates.append(head.label_loss(features, rows))
    assert len({float(each[0]) for each in estimates}) > 1
    torch.testing.assert_close(torch.stack(estimates).mean(dim=0), exact, rtol=0.1, atol=0.05)


def test_bad_labels_are_refused() -> None:
    _, head = build("plain", HOLED)
    features = features_for(2, DIM, torch.float64, 1)
    with pytest.raises(MHEError, match=r"one of the 2 rows.*got shape \(1, 1\)"):
        head.label_loss(features, [[1]])
    with pytest.raises(MHEError, match=r"labels must be 0..5.*got 1 .. 6"):
        head.label_loss(features, [[1], [6]])
    with pytest.raises(MHEError, match=r"topk needs 1 <= k <= 6.*got 7"):
        head.label_topk(features, 7)
