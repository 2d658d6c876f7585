"""The cascade against a dense float64 oracle, which knows tokens, their digits and their rows only."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import cascade_search
from mhe_fairseq.heads.cascade import CascadeHead
from mhe_fairseq.heads.cascade_level import Level
from tests.heads.oracle import TOLERANCE, codebooks, features_for

DIM = 6
KINDS = ("plain", "bottleneck", "tied")
every_kind = pytest.mark.parametrize("kind", KINDS)
books = codebooks(max_vocab=600, min_heads=2)
small_books = codebooks(max_vocab=60, min_heads=2)
counts = st.sampled_from([0, 1, 2, 9])
seeds = st.integers(0, 999)
HOLED = Codebook((4, 3), torch.tensor([7, 0, 2, 8, 6, 10]))  # group 1 is empty, group 3 has one token
DEEP = Codebook((2, 3, 2), torch.tensor([1, 0, 4, 5, 8, 9, 11]))


class Model(nn.Module):
    """A head, and the embedding that it may be tied to."""

    def __init__(self, kind: str, book: Codebook, dim: int = DIM, **kwargs: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(book), dim) if kind == "tied" else None
        bottleneck = max(1, dim // 2) if kind == "bottleneck" else None
        self.head = CascadeHead(dim, book, bottleneck=bottleneck, tied=self.embed, **kwargs)


def build(
    kind: str,
    book: Codebook,
    dtype: torch.dtype = torch.float64,
    seed: int = 1,
    std: float = 1.0,
    **kwargs: Any,
) -> tuple[Model, CascadeHead]:
    torch.manual_seed(seed)
    model = Model(kind, book, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=std)
    model.to(dtype)
    return model, model.head


def level_log_probs(head: CascadeHead, features: Tensor) -> list[Tensor]:
    """H tensors (N, V), float64: log p(digit h of the token | its digits before)."""
    book, x = head.codebook, features.double()
    local = x if head.project is None else x @ head.project.weight.double().T
    digits = book.digits(torch.arange(len(book))).tolist()
    last = book.heads - 1

    def row(prefix: tuple[int, ...], digit: int, token: int) -> Tensor:
        if not prefix:
            return x @ head.group.weight[digit].double() + head.group.bias[digit].double()
        if len(prefix) < last:
            assert head.subgroup is not None
            return x @ head.subgroup.table[prefix[0], digit].double()
        if head.is_tied:
            return local @ head.local.weight[token].double()
        group = prefix[0] if last == 1 else prefix[0] * book.lengths[1] + prefix[1]
        return local @ head.local.table[group, digit].double()

    result = []
    for h in range(book.heads):
        families: dict[tuple[int, ...], dict[int, int]] = {}
        for token, code in enumerate(digits):
            families.setdefault(tuple(code[:h]), {})[code[h]] = token
        chosen: dict[tuple[int, ...], Tensor] = {}
        for prefix, children in families.items():
            logits = torch.stack([row(prefix, digit, token) for digit, token in children.items()], dim=-1)
            for digit, column in zip(children, logits.log_softmax(-1).unbind(-1), strict=True):
                chosen[(*prefix, digit)] = column
        result.append(torch.stack([chosen[tuple(code[: h + 1])] for code in digits], dim=-1))
    return result


def oracle(head: CascadeHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64."""
    return torch.stack(level_log_probs(head, features)).sum(dim=0)


def targets_for(book: Codebook, count: int, seed: int) -> Tensor:
    return torch.randint(len(book), (count,), generator=torch.Generator().manual_seed(seed))


def draw_tokens(monkeypatch: pytest.MonkeyPatch, tokens: Tensor) -> None:
    monkeypatch.setattr(CascadeHead, "_sample_tokens", lambda self, count, device: tokens.to(device))


def gradients(model: nn.Module) -> dict[str, Tensor]:
    grads = {}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        grads[name] = parameter.grad
    return grads


# The distribution


@every_kind
@given(book=books, dtype=st.sampled_from(list(TOLERANCE)), count=counts, seed=seeds)
def test_log_probs_are_the_oracles(
    kind: str, book: Codebook, dtype: torch.dtype, count: int, seed: int
) -> None:
    _, head = build(kind, book, dtype, seed)
    features = features_for(count, DIM, dtype, seed)
    expected = oracle(head, features).detach()
    log_probs = head.log_probs(features).detach()
    assert log_probs.shape == (count, len(book))
    assert log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    scale = 2 * TOLERANCE[dtype] * max([1.0, *expected.abs().flatten().tolist()])
    torch.testing.assert_close(log_probs.double(), expected, atol=scale, rtol=0)
    ones = torch.ones(count, dtype=torch.float64)
    torch.testing.assert_close(log_probs.double().exp().sum(-1), ones, atol=1e-4, rtol=0)
    log_probs[..., :1] = 0.0  # writable, as fairseq's search writes into it


@every_kind
@given(book=books, dtype=st.sampled_from(list(TOLERANCE)), count=counts, seed=seeds)
def test_nll_log_prob_and_log_probs_agree(
    kind: str, book: Codebook, dtype: torch.dtype, count: int, seed: int
) -> None:
    _, head = build(kind, book, dtype, seed)
    features, target = features_for(count, DIM, dtype, seed), targets_for(book, count, seed)
    gathered = head.log_probs(features).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    atol, rtol = 10 * TOLERANCE[dtype], TOLERANCE[dtype]
    torch.testing.assert_close(-head(features, target).nll, gathered, atol=atol, rtol=rtol)
    torch.testing.assert_close(head.log_prob(features, target), gathered, atol=atol, rtol=rtol)
    assert head.training


def test_half_precision_stays_near_float64() -> None:
    book = Codebook((12, 20), torch.randperm(240)[:200])
    for dtype in (torch.float16, torch.bfloat16):
        model, head = build("plain", book, dtype, std=0.5)
        features = features_for(40, DIM, dtype, 1).requires_grad_()
        loss = head(features, targets_for(book, 40, 1))
        assert loss.nll.dtype == loss.smooth.dtype == torch.float32
        expected = oracle(head, features)
        torch.testing.assert_close(head.log_probs(features).double(), expected, atol=0.05, rtol=0)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        assert all(grad.isfinite().all() for grad in gradients(model).values())
        assert features.grad is not None and features.grad.dtype == dtype


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


@given(book=books, seed=seeds)
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


# Best tokens


@every_kind
@given(
    book=books,
    dtype=st.sampled_from(list(TOLERANCE)),
    count=counts,
    std=st.sampled_from([0.1, 3.0]),
    data=st.data(),
)
def test_topk_is_topk_of_log_probs(
    kind: str, book: Codebook, dtype: torch.dtype, count: int, std: float, data: st.DataObject
) -> None:
    k = data.draw(st.one_of(st.integers(1, min(12, len(book))), st.integers(1, len(book))), label="k")
    _, head = build(kind, book, dtype, data.draw(seeds, label="seed"), std)
    features = features_for(count, DIM, dtype, k)
    log_probs = head.log_probs(features)
    scores, tokens = head.topk(features, k)
    assert scores.shape == tokens.shape == (count, k) and tokens.dtype == torch.long
    # Logits in bfloat16 may be rounded to another neighbour when another product computes them.
    rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(scores, log_probs.topk(k, dim=-1).values, atol=1e-4, rtol=rtol)
    torch.testing.assert_close(log_probs.gather(-1, tokens), scores, atol=1e-4, rtol=rtol)
    assert (scores.diff(dim=-1) <= 0).all()
    assert all(len(set(row)) == k for row in tokens.tolist())


@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
def test_topk_in_small_pieces(book: Codebook, monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = build("plain", book)
    features = features_for(6, DIM, torch.float64, 1)
    expected = head.topk(features, len(book))
    monkeypatch.setattr(cascade_search, "_HELD", 1)
    monkeypatch.setattr(cascade_search, "_FIRST", 1)
    torch.testing.assert_close(head.topk(features, len(book)), expected)


def test_topk_with_equal_scores() -> None:
    _, head = build("plain", Codebook((5, 4), vocab_size=18))
    features = torch.zeros(2, DIM, dtype=torch.float64)
    with torch.no_grad():
        head.group.bias.zero_()
    scores, tokens = head.topk(features, 11)
    torch.testing.assert_close(scores, head.log_probs(features).topk(11).values)
    assert len(set(tokens[0].tolist())) == 11


def test_topk_opens_only_groups_that_can_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    _, head = build("plain", Codebook((64, 64)), std=0.1)
    opened = []
    original = Level.log_softmax

    def counted(self: Level, x: Tensor, prefix: Tensor, rows: Tensor) -> Tensor:
        opened.append(len(prefix))
        return original(self, x, prefix, rows)

    monkeypatch.setattr(Level, "log_softmax", counted)
    features = features_for(10, DIM, torch.float64, 1)
    with torch.no_grad():
        head.group.bias[5] = 20.0
    head.topk(features, 10)
    assert sum(opened) == 10 * cascade_search._FIRST  # one round
    opened.clear()
    with torch.no_grad():
        head.group.bias.zero_()
    head.topk(features, 10)
    assert sum(opened) <= 10 * 64  # no group twice, however flat the distribution


def test_topk_of_nan_is_nan_and_ends() -> None:
    _, head = build("plain", HOLED)
    features = features_for(3, DIM, torch.float64, 1)
    features[1] = torch.nan
    scores, tokens = head.topk(features, 4)
    assert scores.isnan().any(dim=1).tolist() == [False, True, False]
    assert ((tokens >= 0) & (tokens < len(HOLED))).all()


def test_topk_refuses_a_bad_k() -> None:
    _, head = build("plain", HOLED)
    for k in (0, 7):
        with pytest.raises(MHEError, match=f"1 <= k <= 6.*got {k}"):
            head.topk(torch.zeros(1, DIM, dtype=torch.float64), k)


class LargestNewTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest storage made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, Tensor) and not func.is_view:
                self.numel = max(self.numel, tensor.untyped_storage().nbytes() // tensor.element_size())
        return result


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
    assert largest.numel <= max(count * 64 * head.groups_sampled, len(book) * DIM)
    with torch.no_grad():
        head.group.weight.mul_(5)
    with LargestNewTensor() as largest:
        head.topk(features.detach(), 5)
    assert largest.numel < count * len(book) / 3


# The smoothing term


@every_kind
@given(book=small_books, seed=seeds)
def test_smoothing_is_unbiased(kind: str, book: Codebook, seed: int) -> None:
    """One draw is a uniform token: the average over all tokens is the exact term, and so are gradients."""
    model, head = build(kind, book, seed=seed)
    features = features_for(4, DIM, torch.float64, seed).requires_grad_()
    target = targets_for(book, 4, seed)
    exact = -oracle(head, features).mean(dim=-1)
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


@every_kind
@given(book=small_books, count=counts, seed=seeds)
def test_per_level_smoothing_is_that_of_the_gold_prefixes(
    kind: str, book: Codebook, count: int, seed: int
) -> None:
    _, head = build(kind, book, seed=seed, smoothing_form="per-level")
    features, target = features_for(count, DIM, torch.float64, seed), targets_for(book, count, seed)
    levels = level_log_probs(head, features)
    digits = book.digits(torch.arange(len(book)))
    expected = -levels[0].mean(dim=-1)
    for h in range(1, book.heads):
        for i, token in enumerate(target):
            inside = (digits[:, :h] == digits[token, :h]).all(dim=-1)
            expected[i] = expected[i] - levels[h][i, inside].mean()
    torch.testing.assert_close(head(features, target).smooth, expected)


def test_samples_follow_the_update_number() -> None:
    _, head = build("plain", Codebook((16, 16)), groups_sampled=2)
    features, target = features_for(5, DIM, torch.float64, 1), torch.arange(5)

    def smooth(update: int) -> Tensor:
        head.set_num_updates(update)
        return head(features, target).smooth.detach()

    assert torch.equal(smooth(3), smooth(3))
    assert not torch.equal(smooth(3), smooth(4))
    head.eval()
    assert torch.equal(smooth(3), smooth(4))
    assert head(features, target, smoothing=False).smooth is None


# Gradients


@every_kind
@given(book=books, count=counts, seed=seeds)
def test_gradients_of_nll_are_the_oracles(kind: str, book: Codebook, count: int, seed: int) -> None:
    model, head = build(kind, book, seed=seed)
    target = targets_for(book, count, seed)
    results = []
    for use_oracle in (False, True):
        model.zero_grad()
        features = features_for(count, DIM, torch.float64, seed).requires_grad_()
        if use_oracle:
            nll = -oracle(head, features).gather(-1, target.unsqueeze(-1)).squeeze(-1)
        else:
            nll = head(features, target, smoothing=False).nll
        (nll * torch.arange(1, count + 1)).sum().backward()
        results.append((features.grad, [p.grad for p in model.parameters()]))
    (actual, parameters), (expected, expected_parameters) = results
    torch.testing.assert_close(actual, expected)
    for grad, wanted in zip(parameters, expected_parameters, strict=True):
        assert grad is not None, "a parameter got no gradient"
        torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted)


@every_kind
@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
@pytest.mark.parametrize("form", ["sampled", "per-level"])
def test_gradients_by_finite_differences(kind: str, book: Codebook, form: str) -> None:
    model, head = build(kind, book, smoothing_form=form)
    head.set_num_updates(3)  # the same samples in every evaluation
    target = torch.tensor([0, 5, 3, 0])
    parameters = list(model.parameters())

    def loss(features: Tensor, *_: Tensor) -> Tensor:
        nll, smooth, _stats = head(features, target)
        return nll + 0.3 * smooth

    features = features_for(4, DIM, torch.float64, 0).requires_grad_()
    # gradcheck moves its inputs in place, so the model's own parameters can be its inputs.
    assert torch.autograd.gradcheck(loss, (features, *parameters))


@every_kind
@given(book=small_books, seed=seeds)
def test_log_probs_are_differentiable(kind: str, book: Codebook, seed: int) -> None:
    model, head = build(kind, book, seed=seed)
    features = features_for(3, DIM, torch.float64, seed)
    target = targets_for(book, 3, seed).unsqueeze(-1)
    grads = []
    for log_probs in (head.log_probs(features), oracle(head, features)):
        parameters = list(model.parameters())
        parts = torch.autograd.grad(log_probs.gather(-1, target).sum(), parameters, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        grads.append([torch.zeros_like(p) if part is None else part for part, p in pairs])
    torch.testing.assert_close(grads[0], grads[1])


@every_kind
@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
@pytest.mark.parametrize("smoothing", [True, False])
def test_every_parameter_gets_a_gradient_even_from_no_tokens(
    kind: str, book: Codebook, smoothing: bool
) -> None:
    model, head = build(kind, book)
    features = torch.zeros(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = head(features, torch.zeros(0, dtype=torch.long), smoothing=smoothing, accuracy=True)
    (loss.nll.sum() + (loss.smooth.sum() if smoothing else 0.0)).backward()
    assert not any(grad.any() for grad in gradients(model).values())
    assert features.grad is not None


def test_rows_of_other_groups_and_holes_get_zeros() -> None:
    model, head = build("plain", HOLED)
    head(features_for(5, DIM, torch.float64, 1), torch.full((5,), 3), smoothing=False).nll.sum().backward()
    touched = gradients(model)["head.local.table"].any(dim=-1)
    tokens = HOLED.token_of_slot.view(4, 3)
    assert touched.tolist() == [[False] * 3] * 2 + [(tokens[2] >= 0).tolist()] + [[False] * 3]


@every_kind
def test_autocast(kind: str) -> None:
    model, head = build(kind, DEEP, torch.float32)
    features, target = features_for(5, DIM, torch.float32, 1), targets_for(DEEP, 5, 1)
    with torch.autocast("cpu", torch.bfloat16):
        loss = head(features, target, accuracy=True)
        log_probs = head.log_probs(features)
    assert loss.nll.dtype == loss.smooth.dtype == log_probs.dtype == torch.float32
    torch.testing.assert_close(loss.nll, head(features, target).nll, atol=0.1, rtol=0.05)
    (loss.nll.sum() + loss.smooth.sum()).backward()
    assert all(grad.dtype == torch.float32 and grad.isfinite().all() for grad in gradients(model).values())


# The rest of the contract


def test_stats() -> None:
    book = DEEP
    _, head = build("plain", book)
    features, target = features_for(40, DIM, torch.float64, 1), targets_for(book, 40, 1)
    assert set(head(features, target).stats) == {"group_nll", "subgroup_nll", "local_nll"}
    loss = head(features, target, accuracy=True)
    levels = level_log_probs(head, features)
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


@every_kind
@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
def test_state_dict_round_trip_and_adopted_codebooks(kind: str, book: Codebook) -> None:
    first, head = build(kind, book, seed=1)
    second, other = build(kind, book, seed=2)
    features = features_for(4, DIM, torch.float64, 0)
    expected = head.log_probs(features)
    assert not torch.allclose(expected, other.log_probs(features))
    second.load_state_dict(first.state_dict(), strict=True)
    torch.testing.assert_close(other.log_probs(features), expected)
    elsewhere = Codebook(book.lengths, book.slots.flip(0).roll(1))
    third, stranger = build(kind, elsewhere, seed=3)
    with pytest.raises(MHEError, match=f"{book.fingerprint}.*{elsewhere.fingerprint}"):
        third.load_state_dict(first.state_dict())
    stranger.adopt_codebook = True
    third.load_state_dict(first.state_dict())
    torch.testing.assert_close(stranger.log_probs(features), expected)
    torch.testing.assert_close(stranger.topk(features, 5), head.topk(features, 5))
    target = targets_for(book, 4, 1)
    for left, right in zip(stranger(features, target)[:2], head.eval()(features, target)[:2], strict=True):
        assert left.shape == right.shape
    torch.testing.assert_close(stranger.eval()(features, target).smooth, head(features, target).smooth)


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


def test_groups_sampled_counts_groups_with_tokens() -> None:
    assert CascadeHead(DIM, HOLED).groups_sampled == 2
    with pytest.raises(MHEError, match="3 groups"):
        CascadeHead(DIM, HOLED, groups_sampled=3)
    assert CascadeHead(DIM, Codebook((1, 5))).groups_sampled == 1


# Labels any number of which may be right


def multilabel_oracle(head: CascadeHead, features: Tensor) -> tuple[list[Tensor], Tensor]:
    """H tensors (N, V) of every label's logits, digit by digit, and (N, V) products of their sigmoids."""
    book, x = head.codebook, features.double()
    digits = book.digits(torch.arange(len(book)))
    logits = [(x @ head.group.weight.double().T + head.group.bias.double())[:, digits[:, 0]]]
    if head.subgroup is not None:
        logits.append(x @ head.subgroup.table[digits[:, 0], digits[:, 1]].double().T)
    local = x if head.project is None else x @ head.project.weight.double().T
    rows = head.local.weight.double()
    logits.append(local @ (rows if head.is_tied else rows.flatten(0, 1)[book.slots]).T)
    return logits, torch.stack([part.sigmoid() for part in logits]).prod(dim=0)


@every_kind
@given(book=small_books, count=counts, top_groups=st.integers(1, 5), seed=seeds)
def test_multilabel_scores(kind: str, book: Codebook, count: int, top_groups: int, seed: int) -> None:
    _, head = build(kind, book, seed=seed)
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
    model, head = build(kind, book, seed=seed)
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


@pytest.mark.parametrize("book", [HOLED, DEEP], ids=["2 digits", "3 digits"])
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
