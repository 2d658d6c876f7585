"""What every head promises (heads/base.py), against dense oracles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import OutputHead, ProductHead, SoftmaxHead
from tests.heads.oracle import TOLERANCE, codebooks, features_for, product_oracle, softmax_oracle

DIM = 6
Oracle = Callable[[OutputHead, Tensor], Tensor]
BUILDERS: dict[str, tuple[Callable[[Codebook], OutputHead], Oracle]] = {
    "softmax": (lambda book: SoftmaxHead(DIM, book), softmax_oracle),  # type: ignore[dict-item]
    "softmax chunked": (lambda book: SoftmaxHead(DIM, book, chunk=3), softmax_oracle),  # type: ignore[dict-item]
    "product": (lambda book: ProductHead(DIM, book), product_oracle),  # type: ignore[dict-item]
    "mixture": (lambda book: ProductHead(DIM, book, mixtures=3), product_oracle),  # type: ignore[dict-item]
}
every_head = pytest.mark.parametrize("name", BUILDERS)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float64])
counts = st.sampled_from([0, 1, 2, 7])


def build(name: str, book: Codebook, dtype: torch.dtype = torch.float64, seed: int = 1) -> OutputHead:
    torch.manual_seed(seed)
    head = BUILDERS[name][0](book)
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=1.0)
    return head.to(dtype).eval()


def targets_for(book: Codebook, count: int, seed: int) -> Tensor:
    return torch.randint(len(book), (count,), generator=torch.Generator().manual_seed(seed))


@every_head
@given(book=codebooks(), dtype=dtypes, count=counts, seed=st.integers(0, 99))
def test_log_probs_are_the_oracles(
    name: str, book: Codebook, dtype: torch.dtype, count: int, seed: int
) -> None:
    head = build(name, book, dtype, seed)
    features = features_for(count, DIM, dtype, seed)
    expected = BUILDERS[name][1](head, features)
    log_probs = head.log_probs(features)
    assert log_probs.shape == (count, len(book))
    assert log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    scale = TOLERANCE[dtype] * max(1.0, float(expected.abs().max()) if count else 1.0)
    torch.testing.assert_close(log_probs.double(), expected, atol=scale, rtol=0)
    torch.testing.assert_close(
        log_probs.double().exp().sum(-1), torch.ones(count).double(), atol=1e-4, rtol=0
    )
    log_probs[..., :1] = 0.0  # writable, as fairseq's search writes into it
    torch.testing.assert_close(head.log_probs(features).double(), expected, atol=scale, rtol=0)


@every_head
@given(book=codebooks(), dtype=dtypes, count=counts, seed=st.integers(0, 99))
def test_nll_log_prob_and_log_probs_agree(
    name: str, book: Codebook, dtype: torch.dtype, count: int, seed: int
) -> None:
    head = build(name, book, dtype, seed)
    features, target = features_for(count, DIM, dtype, seed), targets_for(book, count, seed)
    gathered = head.log_probs(features).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    loss = head(features, target)
    tolerance: dict[str, Any] = {"atol": TOLERANCE[dtype] * 10, "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(-loss.nll, gathered, **tolerance)
    torch.testing.assert_close(head.log_prob(features, target), gathered, **tolerance)
    head.train()
    torch.testing.assert_close(-head(features, target).nll, gathered, **tolerance)
    assert head.training


@every_head
@given(book=codebooks(), dtype=dtypes, count=counts, k=st.integers(1, 12), seed=st.integers(0, 99))
def test_topk_is_topk_of_log_probs(
    name: str, book: Codebook, dtype: torch.dtype, count: int, k: int, seed: int
) -> None:
    head, k = build(name, book, dtype, seed), min(k, len(book))
    features = features_for(count, DIM, dtype, seed)
    log_probs = head.log_probs(features)
    scores, tokens = head.topk(features, k)
    assert scores.shape == tokens.shape == (count, k)
    small = 1e-9 if dtype == torch.float64 else 1e-4
    tolerance: dict[str, Any] = {"atol": small, "rtol": small / 10}
    torch.testing.assert_close(scores, log_probs.topk(k, dim=-1).values, **tolerance)
    torch.testing.assert_close(log_probs.gather(-1, tokens), scores, **tolerance)
    for row in tokens.tolist():
        assert len(set(row)) == k


@every_head
@given(book=codebooks(max_vocab=120), seed=st.integers(0, 99))
def test_topk_of_everything(name: str, book: Codebook, seed: int) -> None:
    head, features = build(name, book, seed=seed), features_for(3, DIM, torch.float64, seed)
    scores, tokens = head.topk(features, len(book))
    assert sorted(tokens[0].tolist()) == list(range(len(book)))
    torch.testing.assert_close(scores, head.log_probs(features).sort(descending=True).values)


@every_head
@given(book=codebooks(max_vocab=300), count=counts, seed=st.integers(0, 99))
def test_gradients_of_nll_are_the_oracles(name: str, book: Codebook, count: int, seed: int) -> None:
    head = build(name, book, seed=seed).train()
    target = targets_for(book, count, seed)
    results = []
    for oracle in (False, True):
        head.zero_grad()
        features = features_for(count, DIM, torch.float64, seed).requires_grad_()
        if oracle:
            log_probs = BUILDERS[name][1](head, features)
            nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        else:
            nll = head(features, target, smoothing=False).nll
        (nll * torch.arange(1, count + 1)).sum().backward()
        results.append((features.grad, [p.grad for p in head.parameters()]))
    (actual, parameters), (expected, expected_parameters) = results
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-7)
    for p, q in zip(parameters, expected_parameters, strict=True):
        assert p is not None, "a parameter got no gradient"
        torch.testing.assert_close(p, torch.zeros_like(p) if q is None else q, atol=1e-9, rtol=1e-7)


@every_head
def test_gradients_by_finite_differences(name: str) -> None:
    book = Codebook((3, 4), torch.tensor([0, 2, 3, 5, 6, 11, 9]))
    head = build(name, book).train()
    head.set_num_updates(3)  # the same samples in every evaluation
    target = torch.tensor([0, 6, 3])

    def loss(features: Tensor, *parameters: Tensor) -> Tensor:
        names = [n for n, _ in head.named_parameters()]
        nll, smooth, _ = torch.func.functional_call(
            head, dict(zip(names, parameters, strict=True)), (features, target)
        )
        return nll + 0.3 * smooth

    features = features_for(3, DIM, torch.float64, 0).requires_grad_()
    parameters = [p.detach().clone().requires_grad_() for p in head.parameters()]
    assert torch.autograd.gradcheck(loss, (features, *parameters))


@every_head
def test_every_parameter_gets_a_gradient_even_from_no_tokens(name: str) -> None:
    head = build(name, Codebook((3, 4), vocab_size=11)).train()
    features = torch.zeros(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = head(features, torch.zeros(0, dtype=torch.long))
    (loss.nll.sum() + loss.smooth.sum()).backward()
    for parameter in head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()


@every_head
def test_accuracy_is_of_the_best_token(name: str) -> None:
    head = build(name, Codebook((5, 6), vocab_size=28))
    features = features_for(50, DIM, torch.float64, 1)
    best = head.log_probs(features).argmax(dim=-1)
    target = torch.where(torch.arange(50) % 2 == 0, best, (best + 1) % 28)
    stats = head(features, target, accuracy=True).stats
    assert stats["accuracy"].tolist() == [1.0, 0.0] * 25


@every_head
def test_state_dict_round_trip(name: str) -> None:
    book = Codebook((3, 5), torch.randperm(15)[:13])
    head, other = build(name, book, seed=1), build(name, book, seed=2)
    features = features_for(4, DIM, torch.float64, 0)
    assert not torch.allclose(head.log_probs(features), other.log_probs(features))
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(head.log_probs(features), other.log_probs(features))


@every_head
def test_a_checkpoint_of_another_codebook_is_refused_or_adopted(name: str) -> None:
    slots = torch.tensor([4, 0, 11, 7, 2, 9, 1])
    head = build(name, Codebook((3, 4), slots), seed=1)
    other = build(name, Codebook((3, 4), vocab_size=7), seed=2)
    with pytest.raises(MHEError, match=f"{head.codebook.fingerprint}.*{other.codebook.fingerprint}"):
        other.load_state_dict(head.state_dict())
    assert other.codebook == Codebook((3, 4), vocab_size=7)
    other.adopt_codebook = True
    other.load_state_dict(head.state_dict())
    features = features_for(4, DIM, torch.float64, 0)
    torch.testing.assert_close(head.log_probs(features), other.log_probs(features))
    torch.testing.assert_close(head.topk(features, 3), other.topk(features, 3))
    larger = build(name, Codebook((3, 4), vocab_size=9))
    with pytest.raises(MHEError, match=r"for 7 tokens and the dictionary has 9"):
        larger.load_state_dict(head.state_dict())


@every_head
def test_a_checkpoint_of_other_lengths_is_refused(name: str) -> None:
    # As many rows of weights: only the lengths tell.
    head, other = build(name, Codebook((3, 4))), build(name, Codebook((4, 3)))
    other.adopt_codebook = True
    with pytest.raises(MHEError, match="lengths 3,4 and this model's has 4,3; give --mhe-lengths 3,4"):
        other.load_state_dict(head.state_dict())


@every_head
def test_topk_refuses_a_bad_k(name: str) -> None:
    head = build(name, Codebook((3, 4), vocab_size=9))
    for k in (0, 10):
        with pytest.raises(MHEError, match=f"1 <= k <= 9.*got {k}"):
            head.topk(torch.zeros(1, DIM, dtype=torch.float64), k)
