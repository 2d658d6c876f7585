"""A product's loss and gradients by kernels, against plain torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.kernels import product_tables
from mhe_fairseq.heads.product.kernels import kernel_loss
from tests.drawn import examples
from tests.heads.kernels.both import PHASES, TOLERANCE, check_same, losses_and_gradients, plain_torch
from tests.heads.kernels.product_cases import (
    DEEP,
    DIM,
    FLOAT,
    HOLED,
    WHOLE,
    batch,
    build,
    mixtures_1_or_3,
)
from tests.heads.oracle import codebooks, features_for, product_oracle, targets_for


@pytest.mark.slow
@given(
    # Of a token or a digit alone the loss is 0, and what is left of it rounding.
    book=codebooks(max_vocab=150).filter(lambda book: len(book) > 4 and min(book.lengths) > 1),
    mixtures=st.sampled_from([1, 1, 2, 3]),
    tied=st.booleans(),
    count=st.sampled_from([0, 1, 7, 33]),
    smoothing=st.booleans(),
    accuracy=st.booleans(),
    training=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(30, phases=PHASES)
def test_losses_and_gradients_are_those_of_plain_torch(
    book: Codebook, mixtures: int, tied: bool, count: int, smoothing: bool, accuracy: bool, training: bool,
    seed: int,
) -> None:  # fmt: skip
    model = build(book, mixtures, seed=seed, tied=tied).train(training)
    x, y = batch(book, count, seed=seed)
    if not product_tables.fits(model.head.lattice, mixtures):
        return
    check_same(model, model.head, x, y, smoothing=smoothing, accuracy=accuracy)


@pytest.mark.slow
@mixtures_1_or_3
@pytest.mark.parametrize("book", [HOLED, WHOLE, DEEP], ids=repr)
def test_digits_of_many_values(book: Codebook, mixtures: int) -> None:
    model = build(book, mixtures)
    check_same(model, model.head, *batch(book, 40), accuracy=True)


@pytest.mark.slow
def test_many_components_have_some_of_the_drawn_tokens_at_a_time() -> None:
    book = Codebook((9, 12), vocab_size=100)
    model = build(book, 40)
    check_same(model, model.head, *batch(book, 3), accuracy=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@mixtures_1_or_3
def test_half_precision(mixtures: int, dtype: torch.dtype) -> None:
    model = build(HOLED, mixtures, dtype, std=0.3)
    check_same(model, model.head, *batch(HOLED, 20, dtype))


@mixtures_1_or_3
def test_large_logits_and_logits_far_from_zero(mixtures: int) -> None:
    model = build(HOLED, mixtures)
    with torch.no_grad():
        model.head.weight.mul_(20.0)
        model.head.bias.add_(300.0)
    model.head.set_num_updates(3)
    x, y = batch(HOLED, 17)
    found = losses_and_gradients(model, model.head, x, y)
    with plain_torch():
        expected = losses_and_gradients(model, model.head, x, y)
    for name, value in expected.items():
        assert torch.isfinite(value).all() and torch.isfinite(found[name]).all()
        scale = float(value.abs().max())
        # fp32 has three decimals at 300, and sums of it lose one.
        torch.testing.assert_close(found[name], value, rtol=0, atol=max(1e-3 * scale, 5e-4), msg=name)


@mixtures_1_or_3
def test_a_token_alone_is_sure(mixtures: int) -> None:
    head = build(Codebook((2, 3), torch.tensor([4])), mixtures).head
    x, y = batch(head.codebook, 5)
    loss = head(x.requires_grad_(), y)
    assert loss.smooth is not None
    (loss.nll + loss.smooth).sum().backward()
    assert x.grad is not None
    for value in (loss.nll, loss.smooth, x.grad):
        torch.testing.assert_close(value, torch.zeros_like(value), rtol=0, atol=2e-6)


@mixtures_1_or_3
@pytest.mark.parametrize("lengths", [(1, 9), (4, 1, 3)], ids=str)
def test_a_digit_of_one_value_costs_nothing(lengths: tuple[int, ...], mixtures: int) -> None:
    head = build(Codebook(lengths, vocab_size=8), mixtures).head
    x, y = batch(head.codebook, 9)
    loss = head(x, y)
    alone = loss.stats[f"digit_{lengths.index(1) + 1}_nll"]
    torch.testing.assert_close(alone, torch.zeros_like(alone), rtol=0, atol=1e-6)
    expected = -product_oracle(head, x).gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(loss.nll.double(), expected, rtol=1e-5, atol=1e-5)


@mixtures_1_or_3
def test_against_the_dense_oracle(mixtures: int) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 30)
    expected = product_oracle(head, x).gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(head.log_prob(x, y).double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["weight", "bias", "gate.weight", "gate.bias", "features"])
def test_what_is_frozen_gets_no_gradient(name: str) -> None:
    head = build(HOLED, 3).head
    x, y = batch(HOLED, 9)
    grads = []
    for context in (torch.enable_grad(), plain_torch()):
        head.zero_grad()
        head.set_num_updates(3)
        leaf = x.clone().requires_grad_(name != "features")
        if name != "features":
            head.get_parameter(name).requires_grad_(False)
        with context:
            loss = head(leaf, y)
            assert loss.smooth is not None
            (loss.nll + loss.smooth).sum().backward()
        named = {each: parameter.grad for each, parameter in head.named_parameters()}
        grads.append({"features": leaf.grad, **named})
    assert grads[0][name] is None
    for each, value in grads[1].items():
        if value is not None:
            torch.testing.assert_close(grads[0][each], value, rtol=1e-4, atol=1e-5, msg=each)


@mixtures_1_or_3
def test_a_graph_kept_gives_the_same_gradients_again_to_the_bit(mixtures: int) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 20)
    wanted = [x.requires_grad_(), *head.parameters()]
    loss = head(x, y)
    assert loss.smooth is not None
    first = torch.autograd.grad(loss.nll.sum() + loss.smooth.sum(), wanted, retain_graph=True)
    again = torch.autograd.grad(loss.nll.sum() + loss.smooth.sum(), wanted)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


@mixtures_1_or_3
@pytest.mark.parametrize("part", ["nll", "smooth"])
def test_one_of_both_losses(part: str, mixtures: int) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 9)
    x.requires_grad_()
    grads = []
    for context in (torch.enable_grad(), plain_torch()):
        head.set_num_updates(3)
        with context:
            grads.append(torch.autograd.grad(getattr(head(x, y), part).sum(), [x, *head.parameters()]))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-6)


def test_features_and_targets_that_are_not_contiguous() -> None:
    model = build(HOLED)
    x, y = features_for(20, 40, FLOAT, 1)[:, 3 : 3 + DIM], targets_for(HOLED, 40, 1)[::2]
    check_same(model, model.head, x, y)


@mixtures_1_or_3
def test_autocast_gives_fp32_gradients_of_fp32_weights(mixtures: int) -> None:
    model = build(HOLED, mixtures, std=0.3)
    found = []
    for context in (torch.enable_grad(), plain_torch()):
        model.head.set_num_updates(3)
        with context, torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, model.head, *batch(HOLED, 20)))
    assert found[0]["head.weight"].dtype == FLOAT
    for name, value in found[1].items():
        atol = float(value.abs().max()) * TOLERANCE[torch.bfloat16]
        torch.testing.assert_close(found[0][name], value, rtol=0, atol=atol, msg=name)


@mixtures_1_or_3
def test_gradient_checkpointing(mixtures: int) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 9)
    head.set_num_updates(3)
    wanted = [x.requires_grad_(), head.weight]
    expected = torch.autograd.grad(head(x, y).nll.sum(), wanted)
    nll = torch.utils.checkpoint.checkpoint(lambda x: head(x, y).nll, x, use_reentrant=False)
    for one, other in zip(torch.autograd.grad(nll.sum(), wanted), expected, strict=True):
        assert torch.equal(one, other)


@mixtures_1_or_3
def test_torch_func(mixtures: int) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 9)
    head.set_num_updates(3)
    parameters = {name: each.detach() for name, each in head.named_parameters()}

    def total(parameters: dict[str, Any]) -> Any:
        loss = torch.func.functional_call(head, parameters, (x, y))
        return loss.nll.sum() + 0.3 * loss.smooth.sum()

    # Before anything else: the tables that it makes must serve outside as well.
    found = torch.func.grad(total)(parameters)
    loss = head(x, y)
    assert loss.smooth is not None
    (loss.nll.sum() + 0.3 * loss.smooth.sum()).backward()
    for name, parameter in head.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_a_second_derivative_is_refused() -> None:
    head = build(HOLED).head
    x, y = batch(HOLED, 3)
    (first,) = torch.autograd.grad(head(x.requires_grad_(), y).nll.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated twice"):
        first.sum().backward()


def test_of_digits_as_likely_the_first_is_the_best() -> None:
    head = build(WHOLE).head
    with torch.no_grad():
        head.weight.zero_()
        head.bias.zero_()
        head.bias[6 + 20] = head.bias[6 + 3] = 1.0
    x, y = batch(WHOLE, 5)
    y[:3] = torch.tensor([3, 20, 35 + 3])
    stats = head(x, y, accuracy=True).stats
    assert stats["accuracy"].tolist()[:3] == [1.0, 0.0, 0.0]
    assert stats["digit_1_accuracy"].tolist()[:3] == [1.0, 1.0, 0.0]
    assert stats["digit_2_accuracy"].tolist()[:3] == [1.0, 0.0, 1.0]


@pytest.mark.filterwarnings("ignore:All-NaN slice")  # of the interpreter
@mixtures_1_or_3
def test_what_is_no_token_has_no_loss(mixtures: int) -> None:
    """On a GPU, where the head does not look for it."""
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 4)
    y[1], y[2] = -1, len(HOLED)
    loss = kernel_loss(head, x, y, smoothing=True, accuracy=False)
    assert loss is not None
    assert loss.nll.isnan().tolist() == [False, True, True, False]


def test_another_codebook_has_tables_of_its_own() -> None:
    first, second = build(HOLED).head, build(Codebook((9, 37), torch.arange(320).flip(0))).head
    x, y = batch(HOLED, 9)
    first.log_prob(x, y)
    first.adopt_codebook = True
    first.load_state_dict(second.state_dict())
    torch.testing.assert_close(first.log_prob(x, y), second.log_prob(x, y))
