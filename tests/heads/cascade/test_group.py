"""The first digit: one row a group, or several whose exponentials are added."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead
from mhe_fairseq.heads.cascade.group import GroupLinear
from tests.heads.cascade.cases import DEEP, DIM, HOLED, build, counts, every_kind, seeds, small_books
from tests.heads.oracle import TOLERANCE, cascade_oracle, features_for, targets_for

numbers = st.sampled_from([1, 2, 3, 5])
every_number = pytest.mark.parametrize("prototypes", [1, 2, 3, 5])
#: The groups of 3 x 4: one token, none, two.
SINGLE = Codebook((3, 4), torch.tensor([8, 0, 11]))


# ---- against dense log-probabilities of every token


@every_kind
@given(book=small_books, prototypes=numbers, count=counts, seed=seeds, dtype=st.sampled_from(list(TOLERANCE)))
def test_log_probs_and_the_best_tokens(
    kind: str, book: Codebook, prototypes: int, count: int, seed: int, dtype: torch.dtype
) -> None:
    _, head = build(kind, book, dtype, seed, group_prototypes=prototypes)
    features = features_for(count, DIM, dtype, seed)
    expected = cascade_oracle(head, features)
    scale = 4 * TOLERANCE[dtype] * max([1.0, *expected.abs().flatten().tolist()])
    with torch.no_grad():
        log_probs = head.log_probs(features)
        torch.testing.assert_close(log_probs.double(), expected, atol=scale, rtol=0)
        k = min(5, len(book))
        scores, tokens = head.topk(features, k)
        torch.testing.assert_close(scores.double(), expected.topk(k).values, atol=scale, rtol=0)
        torch.testing.assert_close(scores, log_probs.gather(1, tokens), atol=1e-4, rtol=1e-2)
        found = head.candidates(features, k, torch.arange(len(book)))
        torch.testing.assert_close(found.given.double(), expected, atol=scale, rtol=0)


@every_kind
@given(book=small_books, prototypes=numbers, seed=seeds)
def test_gradients_of_loss_and_smoothing(kind: str, book: Codebook, prototypes: int, seed: int) -> None:
    """The smoothing term is estimated on all tokens, so that it is exact."""
    model, head = build(kind, book, seed=seed, group_prototypes=prototypes)
    features = features_for(4, DIM, torch.float64, seed).requires_grad_()
    target = targets_for(book, 4, seed)
    wanted = [features, *model.parameters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            CascadeHead, "_smoothing_tokens", lambda _, gold: torch.arange(len(book)).expand(len(gold), -1)
        )
        loss = head(features, target)
    log_probs = cascade_oracle(head, features)
    expected = -log_probs.gather(1, target.unsqueeze(1)).squeeze(1), -log_probs.mean(dim=-1)
    weights = torch.arange(1, 5)
    for value, by_hand in zip((loss.nll, loss.smooth), expected, strict=True):
        assert value is not None
        torch.testing.assert_close(value, by_hand)
        found = torch.autograd.grad((value * weights).sum(), wanted, retain_graph=True)
        dense = torch.autograd.grad((by_hand * weights).sum(), wanted, retain_graph=True, allow_unused=True)
        for one, other in zip(found, dense, strict=True):
            torch.testing.assert_close(one, torch.zeros_like(one) if other is None else other)


@pytest.mark.parametrize("form", ["sampled", "per-level"])
@every_number
def test_the_groups_part_of_the_smoothing_term_is_of_merged_logits(form: str, prototypes: int) -> None:
    """And so exact for the first digit, whatever form the rest has: groups of one token have no rest."""
    book = Codebook((6, 1))
    _, head = build("plain", book, smoothing_form=form, group_prototypes=prototypes)
    features, target = features_for(5, DIM, torch.float64, 1), targets_for(book, 5, 1)
    expected = -cascade_oracle(head, features).mean(dim=-1)
    torch.testing.assert_close(head(features, target).smooth, expected)


@every_number
def test_large_logits_and_absent_rows(prototypes: int) -> None:
    """A sum of exponentials that overflow one by one; a row that is switched off by its bias."""
    group = GroupLinear(DIM, HOLED, prototypes=prototypes).double()
    logits = 1e4 * torch.randn(7, 4 * prototypes, dtype=torch.float64)
    logits[:, ::prototypes] = -torch.inf
    logits.requires_grad_()
    if prototypes == 1:
        assert group.merge(logits) is logits
        return
    expected = torch.logsumexp(logits.view(7, 4, prototypes), dim=-1)
    found = group.merge(logits)
    torch.testing.assert_close(found, expected)
    weights = torch.randn_like(found)
    grads = [torch.autograd.grad((each * weights).sum(), logits)[0] for each in (found, expected)]
    torch.testing.assert_close(*grads)


def test_autocast_adds_up_in_fp32() -> None:
    _, head = build("plain", HOLED, torch.float32, group_prototypes=5)
    features, target = features_for(9, DIM, torch.float32, 1), targets_for(HOLED, 9, 1)
    exact = head.eval()(features, target).nll
    with torch.autocast("cpu", torch.bfloat16):
        logits = head.group(features)
        assert logits.dtype == torch.float32
        rounded = head(features, target)
    assert rounded.nll.dtype == torch.float32
    torch.testing.assert_close(rounded.nll, exact, atol=0.05, rtol=0.02)
    rows = F.linear(features.bfloat16(), head.group.weight.bfloat16(), head.group.bias.bfloat16())
    torch.testing.assert_close(logits, rows.double().view(9, 4, 5).logsumexp(-1).float())


# ---- a new head


def test_one_row_is_a_linear_layer_to_the_bit() -> None:
    torch.manual_seed(1)
    linear = nn.Linear(DIM, 4)
    nn.init.normal_(linear.weight, std=DIM**-0.5)
    nn.init.zeros_(linear.bias)
    after = torch.rand(3)
    torch.manual_seed(1)
    group = GroupLinear(DIM, HOLED)
    assert torch.equal(torch.rand(3), after)
    assert list(group.state_dict()) == ["weight", "bias"]
    for name, value in linear.state_dict().items():
        assert torch.equal(group.state_dict()[name], value)
    assert not group.bias.detach().signbit().any(), "no -0.0"
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(3, DIM).to(dtype)
        assert torch.equal(group.to(dtype)(x), linear.to(dtype)(x))


def test_several_rows_begin_apart_with_the_mass_of_one() -> None:
    torch.manual_seed(1)
    dim, book = 64, Codebook((20, 30), vocab_size=590)
    head = CascadeHead(dim, book, group_prototypes=4)
    assert head.group.prototypes == 4
    assert head.group.weight.shape == (80, dim) and head.group.bias.shape == (80,)
    assert head.output_parameters() == 80 * dim + 80 + 600 * dim
    assert len(head.group.weight.unique(dim=0)) == 80
    assert float(head.group.weight.std()) == pytest.approx(dim**-0.5, rel=0.1)
    # Without features every group's logit is 0, as with one row: sigmoids of labels begin at a half.
    torch.testing.assert_close(head.group(torch.zeros(1, dim)), torch.zeros(1, 20))
    assert "group_prototypes=4" in repr(head)
    assert "prototypes" not in repr(CascadeHead(dim, book))


@every_number
def test_a_group_of_one_token_begins_as_its_embedding(prototypes: int) -> None:
    embedding = nn.Embedding(3, DIM)
    head = CascadeHead(DIM, SINGLE, tied_groups=embedding, group_prototypes=prototypes)
    x = torch.randn(4, DIM)
    torch.testing.assert_close(head.group(x)[:, 0], x @ embedding.weight[1])
    assert bool(head.group.weight[prototypes:].all()), "the others have rows of their own"
    # And trains as one row: its rows get the same gradient, the embedding all of it.
    head.group(x)[:, 0].sum().backward()
    assert head.group.weight.grad is not None and embedding.weight.grad is not None
    of_rows = head.group.weight.grad[:prototypes]
    torch.testing.assert_close(of_rows, of_rows[:1].expand_as(of_rows))
    torch.testing.assert_close(of_rows.sum(dim=0), embedding.weight.grad[1])


def test_rows_that_are_alike_are_one_row() -> None:
    """A cascade of one row a group, copied into one of three, is the same distribution."""
    _, one = build("plain", DEEP)
    _, three = build("plain", DEEP, group_prototypes=3)
    state = one.state_dict()
    shares = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    state["group.weight"] = state["group.weight"].repeat_interleave(3, dim=0)
    state["group.bias"] = (state["group.bias"].unsqueeze(1) + shares).flatten()
    three.load_state_dict(state)
    features = features_for(5, DIM, torch.float64, 1)
    torch.testing.assert_close(three.log_probs(features), one.log_probs(features))


def test_a_copied_head_computes_alike() -> None:
    _, head = build("tied", HOLED, group_prototypes=3)
    features = features_for(5, DIM, torch.float64, 1)
    torch.testing.assert_close(copy.deepcopy(head).log_probs(features), head.log_probs(features))


# ---- bad input


@pytest.mark.parametrize(("theirs", "ours"), [(1, 4), (4, 1), (2, 3)])
def test_a_checkpoint_of_another_number_is_refused(theirs: int, ours: int) -> None:
    saved = CascadeHead(DIM, HOLED, group_prototypes=theirs).state_dict()
    head = CascadeHead(DIM, HOLED, group_prototypes=ours)
    before: dict[str, Tensor] = copy.deepcopy(head.state_dict())
    with pytest.raises(MHEError) as error:
        head.load_state_dict(saved)
    assert str(error.value) == (
        f"the checkpoint's cascade has {theirs} rows for each group and this model's has {ours}; give "
        f"--mhe-group-prototypes {theirs}"
    )
    assert torch.equal(head.group.weight, before["group.weight"])


@pytest.mark.parametrize("count", [0, -1, 65])
def test_numbers_out_of_range_are_refused(count: int) -> None:
    with pytest.raises(MHEError, match=f"^group_prototypes must be 1..64, got {count}$"):
        CascadeHead(DIM, HOLED, group_prototypes=count)
    CascadeHead(DIM, HOLED, group_prototypes=64)
