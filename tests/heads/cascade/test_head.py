"""The cascade: hand-computed, tied, its smoothing term, statistics, state; the rest is in the contract."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.cascade.head import SMOOTHING_PARTS, CascadeHead
from tests.heads.cascade.cases import DEEP, DIM, HOLED, build, every_kind, gradients, seeds, small_books
from tests.heads.oracle import cascade_level_log_probs, cascade_oracle, codebooks, features_for, targets_for
from tests.largest import LargestNewTensor


def draw_tokens(monkeypatch: pytest.MonkeyPatch, tokens: Tensor) -> None:
    """Let every row's smoothing term be estimated on these tokens."""

    def drawn(self: CascadeHead, group: Tensor) -> Tensor:
        return tokens.to(group.device).expand(len(group), -1)

    monkeypatch.setattr(CascadeHead, "_smoothing_tokens", drawn)


# ---- the distribution


def test_hand_computed() -> None:
    """Two groups at 3:1; in the first, tokens at 1:4 around a hole; the second has one token."""
    head = CascadeHead(1, Codebook((2, 3), torch.tensor([0, 2, 4])))
    with torch.no_grad():
        head.group.weight.copy_(torch.tensor([[3.0], [1.0]]).log())
        head.local.table.copy_(torch.tensor([[1.0, 99.0, 4.0], [9.0, 5.0, 9.0]]).log().unsqueeze(-1))
    one = torch.ones(1, 1)
    torch.testing.assert_close(head.log_probs(one).exp(), torch.tensor([[0.15, 0.6, 0.25]]))
    scores, tokens = head.topk(one, 3)
    assert tokens.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(scores.exp(), torch.tensor([[0.6, 0.25, 0.15]]))


def test_tied_is_the_softmax_inside_a_group() -> None:
    book = Codebook((4, 5), torch.randperm(20)[:17])
    model, head = build("tied", book)
    features = features_for(3, DIM, torch.float64, 1)
    log_probs = head.log_probs(features)
    assert model.embed is not None
    whole = features @ model.embed.weight.T
    group = book.digits(torch.arange(17))[:, 0]
    for g in range(4):
        inside = group == g
        torch.testing.assert_close(log_probs[:, inside].log_softmax(-1), whole[:, inside].log_softmax(-1))


@given(book=codebooks(max_vocab=600, min_heads=2), seed=seeds)
def test_tied_equals_untied_with_the_same_rows(book: Codebook, seed: int) -> None:
    model, tied = build("tied", book, seed=seed)
    _, plain = build("plain", book, seed=seed + 1)
    assert model.embed is not None
    with torch.no_grad():
        plain.group.load_state_dict(tied.group.state_dict())
        if plain.subgroup is not None and tied.subgroup is not None:
            plain.subgroup.table.copy_(tied.subgroup.table)
        plain.local.table.view(-1, DIM)[book.slots] = model.embed.weight
    features, target = features_for(7, DIM, torch.float64, seed), targets_for(book, 7, seed)
    losses = []
    for head in (tied, plain):
        head.set_num_updates(seed)
        loss = head(features, target)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        losses.append(loss)
    torch.testing.assert_close(losses[0].nll, losses[1].nll)
    torch.testing.assert_close(losses[0].smooth, losses[1].smooth)
    torch.testing.assert_close(tied.log_probs(features), plain.log_probs(features))
    torch.testing.assert_close(
        gradients(model)["embed.weight"], gradients(plain)["local.table"].view(-1, DIM)[book.slots]
    )


# ---- cost


@every_kind
def test_no_tensor_is_as_large_as_the_logits(kind: str) -> None:
    """Neither for the loss, nor for the best tokens, nor (but the weight's gradient) in backward."""
    book, count = Codebook((64, 64)), 300
    model, head = build(kind, book, torch.float32, std=1.0)
    features = features_for(count, DIM, torch.float32, 1).requires_grad_()
    with LargestNewTensor() as largest:
        loss = head(features, targets_for(book, count, 1), accuracy=False)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        head.log_prob(features, targets_for(book, count, 2))
    assert largest.numel <= max(count * 64 * (1 + head.groups_sampled), len(book) * DIM)
    with torch.no_grad():
        head.group.weight.mul_(5)
    with LargestNewTensor() as largest:
        head.topk(features.detach(), 5)
    assert largest.numel < count * len(book) / 3


def test_parameters_and_their_scale() -> None:
    torch.manual_seed(1)
    dim, book = 64, Codebook((20, 30), vocab_size=590)
    head = CascadeHead(dim, book)
    assert head.output_parameters() == 20 * dim + 20 + 600 * dim
    for weight in (head.group.weight, head.local.table):
        assert float(weight.detach().std()) == pytest.approx(dim**-0.5, rel=0.1)
    assert not head.group.bias.any()
    narrow = CascadeHead(dim, book, bottleneck=8)
    assert narrow.output_parameters() == 20 * dim + 20 + dim * 8 + 600 * 8
    assert float(narrow.local.table.detach().std()) == pytest.approx(8**-0.5, rel=0.1)
    tied = CascadeHead(dim, book, tied=nn.Embedding(590, dim))
    assert tied.output_parameters() == 20 * dim + 20
    deep = CascadeHead(dim, Codebook((5, 6, 7)))
    assert deep.output_parameters() == 5 * dim + 5 + 30 * dim + 210 * dim
    assert "20x30" in repr(narrow) and "tied" in repr(tied)


# ---- the smoothing term


@pytest.mark.slow
@every_kind
@given(book=small_books, seed=seeds)
def test_smoothing_is_unbiased(kind: str, book: Codebook, seed: int) -> None:
    """One draw is a uniform token: the average over all tokens is the exact term, and so are gradients."""
    model, head = build(kind, book, seed=seed)
    features = features_for(4, DIM, torch.float64, seed).requires_grad_()
    target = targets_for(book, 4, seed)
    exact = -cascade_oracle(head, features).mean(dim=-1)
    (exact * torch.arange(1, 5)).sum().backward()
    expected = {name: p.grad for name, p in model.named_parameters()}
    expected_x = features.grad
    every_token = torch.arange(len(book))
    with pytest.MonkeyPatch.context() as patch:
        singles = []
        for token in every_token:
            draw_tokens(patch, token.view(1))
            singles.append(head(features, target).smooth.detach())
        torch.testing.assert_close(torch.stack(singles).mean(dim=0), exact.detach())
        draw_tokens(patch, every_token.flip(0))
        model.zero_grad()
        features.grad = None
        smooth = head(features, target).smooth
        torch.testing.assert_close(smooth, exact)
        (smooth * torch.arange(1, 5)).sum().backward()
    torch.testing.assert_close(features.grad, expected_x)
    for name, grad in gradients(model).items():
        wanted = expected[name]
        torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted)


def test_samples_follow_the_update_number() -> None:
    _, head = build("plain", Codebook((16, 16)), groups_sampled=2)
    features, target = features_for(5, DIM, torch.float64, 1), torch.arange(5)

    def smooth(update: int) -> Tensor:
        head.set_num_updates(update)
        return head(features, target).smooth.detach()

    assert torch.equal(smooth(4), smooth(4))
    assert not torch.equal(smooth(4), smooth(5))
    head.eval()
    assert torch.equal(smooth(4), smooth(5))
    assert head(features, target, smoothing=False).smooth is None


def test_smoothing_tokens_are_uniform_and_of_the_gold_group() -> None:
    """Over the updates a row sees every token equally often; rows of one gold group see the same ones
    wherever they are, and not all groups do."""
    book = Codebook((16, 3), slots=torch.randperm(48, generator=torch.Generator().manual_seed(1))[:40])
    _, head = build("plain", book, groups_sampled=2)
    groups, seen = torch.arange(16), torch.zeros(16, 40)
    updates = 2000
    for update in range(updates):
        head.set_num_updates(update)
        tokens = head._smoothing_tokens(groups)
        assert tokens.shape == (16, 2)
        seen.scatter_add_(1, tokens, torch.ones(16, 2))
        order = torch.tensor([5, 3, 5, 0])
        assert torch.equal(head._smoothing_tokens(groups[order]), tokens[order])
        assert len(tokens.unique(dim=0)) == SMOOTHING_PARTS
    expected = 2 * updates / 40
    # Five standard deviations of a binomial count.
    assert float((seen - expected).abs().max()) < 5 * expected**0.5


def test_groups_sampled_counts_groups_with_tokens() -> None:
    assert CascadeHead(DIM, HOLED).groups_sampled == 2
    with pytest.raises(MHEError, match="3 groups"):
        CascadeHead(DIM, HOLED, groups_sampled=3)
    assert CascadeHead(DIM, Codebook((1, 5))).groups_sampled == 1


# ---- statistics, state, dropout


def test_stats() -> None:
    book = DEEP
    _, head = build("plain", book)
    features, target = features_for(40, DIM, torch.float64, 1), targets_for(book, 40, 1)
    assert set(head(features, target).stats) == {"group_nll", "subgroup_nll", "local_nll"}
    loss = head(features, target, accuracy=True)
    levels = cascade_level_log_probs(head, features)
    digits = book.digits(torch.arange(len(book)))
    best = head.log_probs(features).argmax(dim=-1)
    torch.testing.assert_close(loss.stats["accuracy"], best.eq(target).double())
    for h, name in enumerate(["group", "subgroup", "local"]):
        expected = -levels[h].gather(-1, target.unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(loss.stats[f"{name}_nll"], expected)
        assert not loss.stats[f"{name}_nll"].requires_grad
        for i, token in enumerate(target):
            sisters = (digits[:, :h] == digits[token, :h]).all(dim=-1)
            right = levels[h][i, token] == levels[h][i, sisters].max()
            assert loss.stats[f"{name}_accuracy"][i] == right
    total = sum(loss.stats[f"{name}_nll"] for name in ("group", "subgroup", "local"))
    torch.testing.assert_close(total, loss.nll.detach())


def test_a_tied_embedding_is_saved_once_and_followed_when_it_is_cast() -> None:
    model, head = build("tied", HOLED)
    names = [name for name in model.state_dict() if "codebook" not in name]
    assert names == ["embed.weight", "head.group.weight", "head.group.bias"]
    assert [name for name, _ in model.named_parameters()] == names
    features, target = features_for(5, DIM, torch.float64, 1), targets_for(HOLED, 5, 1)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        (head(features.to(dtype), target).nll.sum()).backward()
        assert model.embed is not None and model.embed.weight.grad is not None
        assert model.embed.weight.grad.dtype == dtype
        model.zero_grad()


def test_a_copied_model_is_tied_to_its_own_embedding() -> None:
    model, head = build("tied", HOLED)
    other = copy.deepcopy(model)
    features = features_for(2, DIM, torch.float64, 1)
    before = head.log_probs(features)
    assert other.embed is not None
    nn.init.normal_(other.embed.weight)
    torch.testing.assert_close(head.log_probs(features), before)
    assert not torch.allclose(other.head.log_probs(features), before)


def test_dropout_is_of_training_only() -> None:
    _, plain = build("bottleneck", DEEP)
    _, head = build("bottleneck", DEEP, dropout=0.5)
    features, target = features_for(50, DIM, torch.float64, 1), targets_for(DEEP, 50, 1)
    exact = plain(features, target)
    loss = head(features, target)
    assert not torch.allclose(loss.stats["local_nll"], exact.stats["local_nll"])
    torch.testing.assert_close(loss.stats["group_nll"], exact.stats["group_nll"])
    torch.testing.assert_close(head.log_prob(features, target), -exact.nll)
    torch.testing.assert_close(head.eval()(features, target).nll, exact.nll)


# ---- bad input


@pytest.mark.parametrize(
    ("lengths", "kwargs", "message"),
    [
        ((12,), {}, "two or three lengths such as 128,256; got 1: 12"),
        ((2, 2, 2, 2), {}, "two or three lengths.*got 4: 2,2,2,2"),
        ((3, 4), {"bottleneck": 0}, "bottleneck must be 1..6.*got 0"),
        ((3, 4), {"bottleneck": 7}, "bottleneck must be 1..6.*got 7"),
        ((3, 4), {"bottleneck": 3, "tied": nn.Embedding(12, 6)}, "bottleneck=3 cannot be combined"),
        ((3, 4), {"tied": nn.Embedding(11, 6)}, r"12 tokens x 6 dimensions.*\(11, 6\)"),
        ((3, 4), {"tied": nn.Embedding(12, 5)}, r"12 tokens x 6 dimensions.*\(12, 5\)"),
        ((3, 4), {"groups_sampled": 0}, "3 groups.*must be 1..2, got 0"),
        ((3, 4), {"groups_sampled": 3}, "3 groups.*must be 1..2, got 3"),
        ((1, 4), {"groups_sampled": 1}, "groups_sampled=1.*one group"),
        ((3, 4), {"smoothing_form": "exact"}, "sampled, per-level; got 'exact'"),
        ((3, 4), {"dropout": 1.0}, "below 1, got 1.0"),
        ((3, 4), {"dropout": -0.1}, "at least 0.*got -0.1"),
    ],
)
def test_bad_arguments_are_refused(lengths: tuple[int, ...], kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(MHEError, match=message):
        CascadeHead(DIM, Codebook(lengths), **kwargs)
