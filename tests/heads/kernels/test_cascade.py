"""A cascade's loss by kernels, against plain torch."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead
from mhe_fairseq.heads.kernels import launch
from mhe_fairseq.heads.kernels.step_counts import training_launches
from tests.drawn import examples
from tests.heads.cascade.cases import Model, build, codebooks
from tests.heads.kernels.both import (
    PHASES,
    TOLERANCE,
    check_one_loss,
    check_same,
    check_same_again,
    check_scoring_stores_no_logits,
    losses_and_gradients,
    operators_of_a_step,
    plain_torch,
)
from tests.heads.oracle import cascade_oracle, features_for, targets_for

FLOAT = torch.float32
HOLED = Codebook((5, 37), torch.randperm(185, generator=torch.Generator().manual_seed(1))[:150])
DEEP = Codebook((3, 4, 18), torch.randperm(216, generator=torch.Generator().manual_seed(1))[:150])


@pytest.mark.slow
@given(
    book=codebooks(max_vocab=90, min_heads=2),
    kind=st.sampled_from(["plain", "bottleneck", "tied"]),
    form=st.sampled_from(["sampled", "sampled", "per-level"]),
    count=st.sampled_from([0, 1, 2, 9, 33]),
    dim=st.sampled_from([3, 16, 21]),
    smoothing=st.booleans(),
    accuracy=st.booleans(),
    training=st.booleans(),
    prototypes=st.sampled_from([1, 1, 2, 3, 5]),
    seed=st.integers(0, 99),
)
@examples(30, phases=PHASES)
def test_losses_and_gradients_are_those_of_plain_torch(
    book: Codebook, kind: str, form: str, count: int, dim: int, smoothing: bool, accuracy: bool,
    training: bool, prototypes: int, seed: int,
) -> None:  # fmt: skip
    model, head = build(
        kind, book, FLOAT, seed, std=0.5, dim=dim, smoothing_form=form, group_prototypes=prototypes
    )
    model.train(training)
    x, y = features_for(count, dim, FLOAT, seed), targets_for(book, count, seed)
    check_same(model, head, x, y, smoothing=smoothing, accuracy=accuracy)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "book"),
    [("plain", HOLED), ("bottleneck", HOLED), ("tied", DEEP)],
    ids=["plain", "bottleneck", "tied, 3 digits"],
)
def test_groups_of_many_columns_and_rows(kind: str, book: Codebook) -> None:
    model, head = build(kind, book, FLOAT, std=0.3, dim=40, groups_sampled=3)
    x, y = features_for(75, 40, FLOAT, 1), targets_for(book, 75, 1)
    check_same(model, head.train(), x, y, accuracy=True)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("kind", "prototypes"), [("plain", 1), ("tied", 1), ("plain", 3)])
def test_half_precision(kind: str, prototypes: int, dtype: torch.dtype) -> None:
    model, head = build(kind, HOLED, dtype, std=0.3, dim=16, group_prototypes=prototypes)
    x, y = features_for(40, 16, dtype, 1), targets_for(HOLED, 40, 1)
    check_same(model, head.train(), x, y)


def test_against_the_dense_oracle() -> None:
    model, head = build("tied", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(30, 16, FLOAT, 1), targets_for(HOLED, 30, 1)
    expected = cascade_oracle(head, x).gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(head.log_prob(x, y).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prototypes", [1, 3])
def test_shortlisted_tokens_share_their_embedding(prototypes: int) -> None:
    # First digits 0 to 2 have one token each.
    book = Codebook((6, 8), torch.tensor([0, 8, 16, *range(24, 48)]))
    embed = nn.Embedding(len(book), 16)

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = embed
            self.head = CascadeHead(16, book, tied=embed, tied_groups=embed, group_prototypes=prototypes)

    torch.manual_seed(1)
    model = Tied()
    x, y = features_for(30, 16, FLOAT, 1), targets_for(book, 30, 1)
    check_same(model, model.head.train(), x, y)


def test_logits_of_rows_may_be_large_and_lie_apart() -> None:
    """Their exponentials overflow one by one; most rows add nothing."""
    model, head = build("plain", HOLED, FLOAT, std=0.3, dim=16, group_prototypes=4)
    with torch.no_grad():
        head.group.bias.copy_(torch.linspace(60, 140, len(head.group.bias)).roll(3))
    check_same(model, head.train(), features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1))


def test_dropout_reads_other_features_than_the_group() -> None:
    model, head = build("plain", HOLED, FLOAT, std=0.5, dim=16, dropout=0.4)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1)
    found = []
    for context in (torch.enable_grad(), plain_torch()):
        torch.manual_seed(5)
        head.set_num_updates(3)
        with context:
            found.append(losses_and_gradients(model, head.train(), x, y))
    for name, value in found[1].items():
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("frozen", ["group.weight", "group.bias", "local.table", "features"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1)
    grads = []
    for context in (torch.enable_grad(), plain_torch()):
        head.zero_grad()
        head.set_num_updates(3)
        leaf = x.clone().requires_grad_(frozen != "features")
        if frozen != "features":
            head.get_parameter(frozen).requires_grad_(False)
        with context:
            loss = head.train()(leaf, y)
            assert loss.smooth is not None
            (loss.nll + loss.smooth).sum().backward()
        named = {name: parameter.grad for name, parameter in head.named_parameters()}
        grads.append({"features": leaf.grad, **named})
    assert grads[0][frozen] is None
    for name, value in grads[1].items():
        if value is not None:
            torch.testing.assert_close(grads[0][name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_a_graph_kept_gives_the_same_gradients_again_to_the_bit() -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    check_same_again(head, features_for(40, 16, FLOAT, 1), targets_for(HOLED, 40, 1))


@pytest.mark.parametrize("part", ["nll", "smooth"])
def test_one_of_both_losses(part: str) -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(20, 16, FLOAT, 1).requires_grad_(), targets_for(HOLED, 20, 1)
    check_one_loss(head, part, [x, head.local.table], y)


def test_features_that_are_not_contiguous() -> None:
    model, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(20, 40, FLOAT, 1)[:, 3:19], targets_for(HOLED, 40, 1)[::2]
    check_same(model, head.train(), x, y)


@pytest.mark.parametrize("prototypes", [1, 3])
def test_autocast_gives_fp32_gradients_of_fp32_tables(prototypes: int) -> None:
    model, head = build("plain", HOLED, FLOAT, std=0.3, dim=16, group_prototypes=prototypes)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1)
    found = []
    for context in (torch.enable_grad(), plain_torch()):
        head.set_num_updates(3)
        with context, torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, head.train(), x, y))
    assert found[0]["head.local.table"].dtype == FLOAT
    for name, value in found[1].items():
        scale = float(value.abs().max())
        torch.testing.assert_close(
            found[0][name], value, rtol=0, atol=scale * TOLERANCE[torch.bfloat16], msg=name
        )


@pytest.mark.slow
def test_gradient_checkpointing() -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(20, 16, FLOAT, 1).requires_grad_(), targets_for(HOLED, 20, 1)
    head.train().set_num_updates(3)
    expected = torch.autograd.grad(head(x, y).nll.sum(), [x, head.local.table])
    nll = torch.utils.checkpoint.checkpoint(lambda x: head(x, y).nll, x, use_reentrant=False)
    found = torch.autograd.grad(nll.sum(), [x, head.local.table])
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_torch_func() -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1)
    head.train().set_num_updates(3)
    head(x, y).nll.sum().backward()
    parameters = {name: each.detach() for name, each in head.named_parameters()}

    def total(parameters: dict[str, Any]) -> Any:
        return torch.func.functional_call(head, parameters, (x, y)).nll.sum()

    found = torch.func.grad(total)(parameters)
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_scoring_stores_no_logits() -> None:
    _, head = build("plain", HOLED, FLOAT, std=0.5, dim=16)
    check_scoring_stores_no_logits(head, features_for(20, 16, FLOAT, 1), targets_for(HOLED, 20, 1))


@pytest.mark.parametrize(("kind", "prototypes"), [("plain", 1), ("tied", 1), ("plain", 5)])
def test_a_step_is_few_operators_and_never_waits(kind: str, prototypes: int) -> None:
    _, head = build(kind, HOLED, FLOAT, dim=16, group_prototypes=prototypes)
    x, y = features_for(50, 16, FLOAT, 1).requires_grad_(), targets_for(HOLED, 50, 1)
    operators = operators_of_a_step(head, x, y)
    # One more on a GPU: what was drawn is copied there.
    assert operators.total + 1 <= training_launches("cascade"), operators.counts
    assert not operators.found


def test_what_kernels_cannot_is_plain_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mhe_fairseq.heads.kernels import plan

    monkeypatch.setattr(plan, "MOST_RANGES", 4)
    launches: list[launch.Launch] = []

    def watch(launched: launch.Launch) -> bool:
        launches.append(launched)
        return True

    with launch.watched(watch):
        model, head = build("plain", HOLED, FLOAT, dim=16)
        assert isinstance(model, Model)
        head(features_for(5, 16, FLOAT, 1), targets_for(HOLED, 5, 1))
        _, wide = build("plain", HOLED, torch.float64, dim=16)
        wide(features_for(5, 16, torch.float64, 1), targets_for(HOLED, 5, 1))
    assert not launches


@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
def test_the_loss_of_several_labels_is_that_of_plain_torch(book: Codebook) -> None:
    model, head = build("plain", book, FLOAT, std=0.5, dim=16)
    labels = [[3, 70, 4], [], [149], [5, 6]]
    found: list[list[torch.Tensor]] = []
    launched: list[launch.Launch] = []

    def seen(each: launch.Launch) -> bool:
        launched.append(each)
        return True

    for by_kernels in (True, False):
        features = features_for(4, 16, FLOAT, 1).requires_grad_()
        launched.clear()
        with contextlib.nullcontext() if by_kernels else plain_torch(), launch.watched(seen):
            loss = head.label_loss(features, labels)
        assert bool(launched) == by_kernels
        with contextlib.nullcontext() if by_kernels else plain_torch():
            found.append([loss, *torch.autograd.grad(loss.sum(), [features, *model.parameters()])])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
