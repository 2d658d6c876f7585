"""What every head promises (heads/base.py), against dense oracles."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from tests.heads.cases import (
    CASES,
    DIM,
    SLOTS,
    build,
    build_model,
    every_head,
    every_head_and_lengths,
)
from tests.heads.oracle import TOLERANCE, features_for, softmax_oracle, targets_for

dtypes = st.sampled_from(list(TOLERANCE))
counts = st.sampled_from([0, 1, 2, 7])
seeds = st.integers(0, 99)


@every_head
@given(data=st.data(), dtype=dtypes, count=counts, seed=seeds)
def test_log_probs_are_the_oracles(
    name: str, data: st.DataObject, dtype: torch.dtype, count: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks())
    head = build(name, book, dtype, seed)
    features = features_for(count, DIM, dtype, seed)
    expected = CASES[name].oracle(head, features).detach()
    log_probs = head.log_probs(features).detach()
    assert log_probs.shape == (count, len(book))
    assert log_probs.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # A cascade adds up log-probabilities, each with a rounding of its own.
    scale = 2 * TOLERANCE[dtype] * max([1.0, *expected.abs().flatten().tolist()])
    torch.testing.assert_close(log_probs.double(), expected, atol=scale, rtol=0)
    torch.testing.assert_close(
        log_probs.double().exp().sum(-1), torch.ones(count).double(), atol=1e-4, rtol=0
    )
    log_probs[..., :1] = 0.0  # writable, as fairseq's search writes into it
    torch.testing.assert_close(head.log_probs(features).double(), expected, atol=scale, rtol=0)


@every_head
@given(data=st.data(), dtype=dtypes, count=counts, seed=seeds)
def test_nll_log_prob_and_log_probs_agree(
    name: str, data: st.DataObject, dtype: torch.dtype, count: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks())
    head = build(name, book, dtype, seed)
    features, target = features_for(count, DIM, dtype, seed), targets_for(book, count, seed)
    gathered = head.log_probs(features).gather(-1, target.unsqueeze(-1)).squeeze(-1)
    tolerance: dict[str, Any] = {"atol": TOLERANCE[dtype] * 10, "rtol": TOLERANCE[dtype]}
    torch.testing.assert_close(-head(features, target).nll, gathered, **tolerance)
    torch.testing.assert_close(head.log_prob(features, target), gathered, **tolerance)
    head.train()
    if not CASES[name].estimates:
        torch.testing.assert_close(-head(features, target).nll, gathered, **tolerance)
    torch.testing.assert_close(head.log_prob(features, target), gathered, **tolerance)
    assert head.training


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.exact_smoothing])
@given(data=st.data(), count=counts, seed=seeds)
def test_an_exact_smoothing_term_is_the_oracles(
    name: str, data: st.DataObject, count: int, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks())
    head = build(name, book, seed=seed)
    features, target = features_for(count, DIM, torch.float64, seed), targets_for(book, count, seed)
    expected = -CASES[name].oracle(head, features).mean(dim=-1)
    torch.testing.assert_close(head(features, target).smooth, expected)
    assert head(features, target, smoothing=False).smooth is None


@every_head
@given(data=st.data(), dtype=dtypes, count=counts, std=st.sampled_from([0.1, 1.0, 3.0]), seed=seeds)
def test_topk_is_topk_of_log_probs(
    name: str, data: st.DataObject, dtype: torch.dtype, count: int, std: float, seed: int
) -> None:
    book = data.draw(CASES[name].codebooks())
    k = data.draw(st.one_of(st.integers(1, min(12, len(book))), st.integers(1, len(book))))
    head = build(name, book, dtype, seed, std)
    features = features_for(count, DIM, dtype, seed)
    # As in a search: without gradients logits of half precision are not rounded.
    with torch.no_grad():
        log_probs = head.log_probs(features)
        scores, tokens = head.topk(features, k)
    assert scores.shape == tokens.shape == (count, k) and tokens.dtype == torch.long
    small = 1e-9 if dtype == torch.float64 else 1e-4
    # Half precision logits may be rounded to another neighbour when another product computes them.
    relative = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, small / 10)
    tolerance: dict[str, Any] = {"atol": small, "rtol": relative}
    torch.testing.assert_close(scores, log_probs.topk(k, dim=-1).values, **tolerance)
    torch.testing.assert_close(log_probs.gather(-1, tokens), scores, **tolerance)
    assert (scores.diff(dim=-1) <= 0).all()
    for row in tokens.tolist():
        assert len(set(row)) == k


@every_head
@given(data=st.data(), seed=seeds)
def test_topk_of_everything(name: str, data: st.DataObject, seed: int) -> None:
    book = data.draw(CASES[name].codebooks(max_vocab=120))
    head, features = build(name, book, seed=seed), features_for(3, DIM, torch.float64, seed)
    scores, tokens = head.topk(features, len(book))
    assert sorted(tokens[0].tolist()) == list(range(len(book)))
    torch.testing.assert_close(scores, head.log_probs(features).sort(descending=True).values)


@every_head
@given(data=st.data(), count=counts, seed=seeds)
def test_gradients_of_nll_are_the_oracles(name: str, data: st.DataObject, count: int, seed: int) -> None:
    case = CASES[name]
    book = data.draw(case.codebooks(max_vocab=300))
    model = build_model(name, book, seed=seed).train(not case.estimates)
    target = targets_for(book, count, seed)
    results = []
    for oracle in (False, True):
        model.zero_grad()
        features = features_for(count, DIM, torch.float64, seed).requires_grad_()
        if oracle:
            log_probs = case.oracle(model.head, features)
            nll = -log_probs.gather(-1, target.unsqueeze(-1)).squeeze(-1)
        else:
            nll = model.head(features, target, smoothing=False).nll
        (nll * torch.arange(1, count + 1)).sum().backward()
        results.append((features.grad, [p.grad for p in model.parameters()]))
    (actual, parameters), (expected, expected_parameters) = results
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=1e-7)
    for p, q in zip(parameters, expected_parameters, strict=True):
        assert p is not None or case.sums_rows, "a parameter got no gradient"
        given = [torch.zeros(()) if each is None else each for each in (p, q)]
        torch.testing.assert_close(*torch.broadcast_tensors(*given), atol=1e-9, rtol=1e-7, check_dtype=False)


@every_head
@given(data=st.data(), seed=seeds)
def test_log_probs_are_differentiable(name: str, data: st.DataObject, seed: int) -> None:
    """fairseq's own criterions train through them."""
    book = data.draw(CASES[name].codebooks(max_vocab=60))
    model = build_model(name, book, seed=seed).train()
    features, target = features_for(3, DIM, torch.float64, seed), targets_for(book, 3, seed).unsqueeze(-1)
    grads = []
    for log_probs in (model.head.log_probs(features), CASES[name].oracle(model.head, features)):
        parameters = list(model.parameters())
        parts = torch.autograd.grad(log_probs.gather(-1, target).sum(), parameters, allow_unused=True)
        pairs = zip(parts, parameters, strict=True)
        grads.append([torch.zeros_like(p) if part is None else part for part, p in pairs])
    torch.testing.assert_close(grads[0], grads[1])


@every_head_and_lengths
def test_gradients_by_finite_differences(name: str, lengths: tuple[int, ...]) -> None:
    model = build_model(name, Codebook(lengths, SLOTS)).train()
    model.head.set_num_updates(3)  # the same samples in every evaluation
    target = torch.tensor([0, 6, 3, 0])

    def loss(features: Tensor, *_: Tensor) -> Tensor:
        nll, smooth, _stats = model.head(features, target)
        return nll + 0.3 * smooth

    features = features_for(4, DIM, torch.float64, 0).requires_grad_()
    # gradcheck moves its inputs in place, so the model's own parameters can be its inputs.
    assert torch.autograd.gradcheck(loss, (features, *model.parameters()))


@every_head_and_lengths
@pytest.mark.parametrize("smoothing", [True, False])
def test_every_parameter_gets_a_gradient_even_from_no_tokens(
    name: str, lengths: tuple[int, ...], smoothing: bool
) -> None:
    model = build_model(name, Codebook(lengths, SLOTS)).train()
    features = torch.zeros(0, DIM, dtype=torch.float64, requires_grad=True)
    loss = model.head(features, torch.zeros(0, dtype=torch.long), smoothing=smoothing, accuracy=True)
    (loss.nll.sum() + (loss.smooth.sum() if smoothing else 0.0)).backward()
    assert features.grad is not None
    for parameter in model.parameters():
        if parameter.grad is None:
            assert CASES[name].sums_rows and model.embed is not None and parameter is model.embed.weight
        else:
            assert not parameter.grad.any()


@every_head_and_lengths
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast_train_near_float64(
    name: str, lengths: tuple[int, ...], dtype: torch.dtype
) -> None:
    book = Codebook(lengths, SLOTS)
    target = targets_for(book, 40, 1)
    losses = []
    for kind, autocast in ((torch.float64, False), (dtype, False), (torch.float32, True)):
        model = build_model(name, book, dtype, std=0.5).train().to(kind)
        model.head.set_num_updates(3)
        features = features_for(40, DIM, dtype, 1).to(kind).requires_grad_()
        with torch.autocast("cpu", dtype, enabled=autocast):
            loss = model.head(features, target, accuracy=True)
            log_probs = model.head.log_probs(features)
        (loss.nll.sum() + loss.smooth.sum()).backward()
        losses.append((loss.nll, loss.smooth, log_probs))
        assert features.grad is not None
        for tensor in (features, *model.parameters()):
            if tensor.grad is None:
                assert CASES[name].sums_rows and model.embed is not None and tensor is model.embed.weight
            else:
                assert tensor.grad.dtype == kind and tensor.grad.isfinite().all()
    for exact, half, mixed in zip(*losses, strict=True):
        assert half.dtype == mixed.dtype == torch.float32
        torch.testing.assert_close(half.double(), exact, atol=0.05, rtol=0.02)
        # The same logits to the bit, and single precision after them.
        if CASES[name].oracle is softmax_oracle or CASES[name].sums_rows:
            torch.testing.assert_close(mixed.double(), exact, atol=0.05, rtol=0.02)
        else:
            torch.testing.assert_close(mixed, half, atol=1e-5, rtol=1e-5)


@every_head
def test_accuracy_is_of_the_best_token(name: str) -> None:
    lengths = (5, 6) if CASES[name].digits[0] < 3 else (3, 2, 5)
    head = build(name, Codebook(lengths, vocab_size=28))
    features = features_for(50, DIM, torch.float64, 1)
    best = head.log_probs(features).argmax(dim=-1)
    target = torch.where(torch.arange(50) % 2 == 0, best, (best + 1) % 28)
    stats = head(features, target, accuracy=True).stats
    assert stats["accuracy"].tolist() == [1.0, 0.0] * 25


@every_head_and_lengths
def test_state_dict_round_trip(name: str, lengths: tuple[int, ...]) -> None:
    book = Codebook(lengths, SLOTS)
    model, other = build_model(name, book, seed=1), build_model(name, book, seed=2)
    features = features_for(4, DIM, torch.float64, 0)
    assert not torch.allclose(model.head.log_probs(features), other.head.log_probs(features))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(model.head.log_probs(features), other.head.log_probs(features))


@every_head_and_lengths
def test_a_checkpoint_of_another_codebook_is_refused_or_adopted(name: str, lengths: tuple[int, ...]) -> None:
    book, elsewhere = Codebook(lengths, SLOTS), Codebook(lengths, SLOTS.flip(0).roll(1))
    model, other = build_model(name, book, seed=1), build_model(name, elsewhere, seed=2)
    with pytest.raises(MHEError, match=f"{book.fingerprint}.*{elsewhere.fingerprint}"):
        other.load_state_dict(model.state_dict())
    assert other.head.codebook == elsewhere
    other.head.adopt_codebook = True
    other.load_state_dict(model.state_dict())
    features, target = features_for(4, DIM, torch.float64, 0), targets_for(book, 4, 1)
    head, adopted = model.head, other.head
    torch.testing.assert_close(adopted.log_probs(features), head.log_probs(features))
    torch.testing.assert_close(adopted.topk(features, 3), head.topk(features, 3))
    for training in (False, True):
        losses = []
        for each in (adopted, head):
            each.train(training)
            each.set_num_updates(3)
            losses.append(each(features, target)[:2])
        torch.testing.assert_close(*losses)
    larger = build_model(name, Codebook(lengths, vocab_size=9))
    with pytest.raises(MHEError, match=r"for 7 tokens and the dictionary has 9"):
        larger.load_state_dict(model.state_dict())


@every_head_and_lengths
def test_a_checkpoint_of_other_lengths_is_refused(name: str, lengths: tuple[int, ...]) -> None:
    # As many rows of weights: only the lengths tell.
    swapped = (lengths[1], lengths[0], *lengths[2:])
    model, other = build_model(name, Codebook(lengths)), build_model(name, Codebook(swapped))
    other.head.adopt_codebook = True
    theirs, ours = ",".join(map(str, lengths)), ",".join(map(str, swapped))
    with pytest.raises(MHEError, match=f"lengths {theirs} and this model's has {ours}; give --mhe-lengths"):
        other.load_state_dict(model.state_dict())


@every_head_and_lengths
def test_topk_refuses_a_bad_k(name: str, lengths: tuple[int, ...]) -> None:
    head = build(name, Codebook(lengths, vocab_size=9))
    for k in (0, 10):
        with pytest.raises(MHEError, match=f"1 <= k <= 9.*got {k}"):
            head.topk(torch.zeros(1, DIM, dtype=torch.float64), k)
