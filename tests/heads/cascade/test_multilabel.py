"""A cascade over labels any number of which may be right."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.cascade.head import CascadeHead
from tests.heads.cascade.cases import (
    DIM,
    HOLED,
    both_depths,
    build,
    counts,
    every_kind,
    gradients,
    seeds,
    small_books,
)
from tests.heads.oracle import features_for


def multilabel_oracle(head: CascadeHead, features: Tensor) -> tuple[list[Tensor], Tensor]:
    """H tensors (N, V) of every label's logits, digit by digit, and (N, V) products of their sigmoids."""
    book, x = head.codebook, features.double()
    digits = book.digits(torch.arange(len(book)))
    rows_of_groups = x @ head.group.weight.double().T + head.group.bias.double()
    of_groups = rows_of_groups.unflatten(1, (book.lengths[0], head.group.prototypes)).logsumexp(dim=-1)
    logits = [of_groups[:, digits[:, 0]]]
    if head.subgroup is not None:
        logits.append(x @ head.subgroup.table[digits[:, 0], digits[:, 1]].double().T)
    local = x if head.project is None else x @ head.project.weight.double().T
    rows = head.local.weight.double()
    logits.append(local @ (rows if head.is_tied else rows.flatten(0, 1)[book.slots]).T)
    return logits, torch.stack([part.sigmoid() for part in logits]).prod(dim=0)


@every_kind
@given(
    book=small_books,
    count=counts,
    top_groups=st.integers(1, 5),
    seed=seeds,
    prototypes=st.sampled_from([1, 1, 3]),
)
def test_multilabel_scores(
    kind: str, book: Codebook, count: int, top_groups: int, seed: int, prototypes: int
) -> None:  # fmt: skip
    _, head = build(kind, book, seed=seed, group_prototypes=prototypes)
    features = features_for(count, DIM, torch.float64, seed)
    labels, scores = head.multilabel_scores(features, top_groups)
    logits, products = multilabel_oracle(head, features)
    logits, products = [part.detach() for part in logits], products.detach()
    digits = book.digits(torch.arange(len(book)))
    assert (scores.diff(dim=-1) <= 0).all()
    for i in range(count):
        real = labels[i][labels[i] >= 0]
        assert len(set(real.tolist())) == len(real)
        torch.testing.assert_close(scores[i][: len(real)], products[i][real])
        assert not scores[i][len(real) :].any()
        # Beam search over digits, by hand: keep the best prefixes of every length.
        kept: list[tuple[int, ...]] = [()]
        for h in range(book.heads - 1):
            value: dict[tuple[int, ...], float] = {}
            for token, code in enumerate(digits.tolist()):
                if tuple(code[:h]) in kept:
                    product = torch.stack([part[i, token] for part in logits[: h + 1]]).sigmoid().prod()
                    value[tuple(code[: h + 1])] = float(product)
            kept = sorted(value, key=lambda prefix: -value[prefix])[:top_groups]
        expected = [t for t, code in enumerate(digits.tolist()) if tuple(code[:-1]) in kept]
        assert sorted(real.tolist()) == expected


@every_kind
@given(book=small_books, count=st.integers(0, 4), seed=seeds, data=st.data())
def test_multilabel_loss_over_all_groups(
    kind: str, book: Codebook, count: int, seed: int, data: st.DataObject
) -> None:
    """With every group a candidate the loss is that of every prefix and every label."""
    model, head = build(kind, book, seed=seed, group_prototypes=data.draw(st.sampled_from([1, 1, 3])))
    labels = st.lists(st.integers(0, len(book) - 1), max_size=4)
    targets = data.draw(st.lists(labels, min_size=count, max_size=count), label="targets")
    features = features_for(count, DIM, torch.float64, seed)
    loss = head.multilabel_loss(features, targets, top_groups=book.size)
    logits, _ = multilabel_oracle(head, features)
    digits = book.digits(torch.arange(len(book))).tolist()
    rows = []
    for i in range(count):
        row = 0.0 * logits[0][i].sum()
        for h in range(book.heads):
            gold = {tuple(digits[label][: h + 1]) for label in targets[i]}
            for prefix, token in {tuple(code[: h + 1]): token for token, code in enumerate(digits)}.items():
                sign = 1.0 if prefix in gold else -1.0
                row = row - nn.functional.logsigmoid(sign * logits[h][i, token])
        rows.append(row)
    expected = torch.stack(rows) if rows else 0.0 * logits[0].sum(dim=-1)
    torch.testing.assert_close(loss, expected)
    parameters = list(model.parameters())
    actual = torch.autograd.grad(loss.sum(), parameters)
    wanted = torch.autograd.grad(expected.sum(), parameters, allow_unused=True)
    for grad, other in zip(actual, wanted, strict=True):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if other is None else other)


@both_depths
def test_multilabel_loss_keeps_the_gold_groups(book: Codebook) -> None:
    model, head = build("plain", book)
    features = features_for(3, DIM, torch.float64, 1)
    worst = multilabel_oracle(head, features)[1].argmin(dim=-1)
    targets = [[int(label)] for label in worst]
    head.multilabel_loss(features, targets, top_groups=1).sum().backward()
    touched = gradients(model)["head.local.table"].flatten(0, 1)[book.slots[worst]]
    assert touched.any(dim=-1).all()
    padded = torch.nn.functional.pad(worst.unsqueeze(-1), (0, 2), value=-1)
    torch.testing.assert_close(
        head.multilabel_loss(features, padded, 1), head.multilabel_loss(features, targets, 1)
    )


@pytest.mark.parametrize("lengths", [(6, 5), (3, 2, 5)])
def test_multilabel_learns(lengths: tuple[int, ...]) -> None:
    """Every row has the labels named by the coordinates that are 1: precision rises to about 1."""
    torch.manual_seed(1)
    labels, rows = 28, 300
    present = torch.rand(rows, labels) < 0.08
    present[torch.arange(rows), torch.randint(labels, (rows,))] = True
    features = present.float()
    targets = [row.nonzero().squeeze(-1).tolist() for row in present]
    head = CascadeHead(labels, Codebook(lengths, vocab_size=labels))
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    for _ in range(80):
        optimizer.zero_grad()
        head.multilabel_loss(features, targets, top_groups=2).mean().backward()
        optimizer.step()
    best, scores = head.multilabel_scores(features, top_groups=3)
    right = present.gather(1, best[:, :1]).float().mean()
    assert right > 0.97
    assert scores.shape == best.shape == (rows, 3 * lengths[-1])


def test_multilabel_refuses_bad_input() -> None:
    _, head = build("plain", HOLED)
    features = features_for(2, DIM, torch.float64, 1)
    with pytest.raises(MHEError, match="at least 1, got 0"):
        head.multilabel_scores(features, 0)
    with pytest.raises(MHEError, match="at least 1, got -1"):
        head.multilabel_loss(features, [[1], [2]], -1)
    with pytest.raises(MHEError, match=r"one of the 2 rows.*got shape \(3, 1\)"):
        head.multilabel_loss(features, [[1], [2], [3]], 2)
    with pytest.raises(MHEError, match=r"labels must be 0..5.*got -1 .. 6"):
        head.multilabel_loss(features, [[1, 2], [6]], 2)
