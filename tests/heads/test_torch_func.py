"""``torch.func`` and recomputation on every head: the gradients of ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import SamplingHead, SoftmaxHead, grouped
from mhe_fairseq.heads.sharded.exchange import _Moved, _Total
from tests.heads.cases import DIM, SLOTS, Model, build_model, every_head_and_lengths
from tests.heads.oracle import features_for, targets_for

training_or_not = pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
#: As ``SLOTS`` without a first digit of one token; of 3 x 4 here the one in the middle has one.
SINGLE = torch.tensor([8, 5, 11, 10, 2, 9, 0])
#: More than the rows that a chunked softmax takes at once.
ROWS = 7

#: Parameters and features -> a number.
Loss = Callable[[dict[str, Tensor], Tensor], Tensor]


def model_of(
    name: str, lengths: tuple[int, ...], training: bool, slots: Tensor = SINGLE
) -> tuple[Model, Tensor, Tensor]:
    """A model that draws the same samples whenever it is asked, features and targets."""
    book = Codebook(lengths, slots)
    model = build_model(name, book).train(training)
    model.head.set_num_updates(3)
    return model, features_for(ROWS, DIM, torch.float64, 1), targets_for(book, ROWS, 2)


def weigh(loss: Any) -> Tensor:
    """Another weight for every row and part."""
    scale = torch.arange(1.0, len(loss.nll) + 1, dtype=torch.float64)
    total: Tensor = (loss.nll * scale).sum() + 0.3 * (loss.smooth * scale).sum().square()
    return total


def functional(model: Model, target: Tensor) -> Loss:
    class Whole(torch.nn.Module):
        """So that the embedding that a head is tied to is swapped too."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return weigh(self.model.head(x, target))

    whole = Whole()
    return lambda parameters, x: torch.func.functional_call(whole, parameters, (x,))


def parameters_of(model: Model) -> dict[str, Tensor]:
    return {f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()}


def by_autograd(model: Model, x: Tensor, target: Tensor) -> list[Tensor]:
    leaf = x.clone().requires_grad_()
    model.zero_grad()
    weigh(model.head(leaf, target)).backward()
    assert leaf.grad is not None
    return [leaf.grad, *(_or_zeros(parameter) for parameter in model.parameters())]


def _or_zeros(parameter: Tensor) -> Tensor:
    """An embedding that no row is tied to has no gradient; ``torch.func`` says zero."""
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


@pytest.mark.parametrize("slots", [SLOTS, SINGLE], ids=["empty", "single"])
@training_or_not
@every_head_and_lengths
def test_grad_is_that_of_autograd(name: str, lengths: tuple[int, ...], training: bool, slots: Tensor) -> None:
    model, x, target = model_of(name, lengths, training, slots)
    expected = by_autograd(model, x, target)
    of_parameters, of_x = torch.func.grad(functional(model, target), (0, 1))(parameters_of(model), x)
    for actual, wanted in zip([of_x, *of_parameters.values()], expected, strict=True):
        torch.testing.assert_close(actual, wanted)
    # Nothing of the transformation stays behind.
    for actual, wanted in zip(by_autograd(model, x, target), expected, strict=True):
        assert torch.equal(actual, wanted)


@training_or_not
@every_head_and_lengths
def test_vjp_gives_the_same_again(name: str, lengths: tuple[int, ...], training: bool) -> None:
    model, x, target = model_of(name, lengths, training)
    expected = by_autograd(model, x, target)
    value, pull = torch.func.vjp(functional(model, target), parameters_of(model), x)  # type: ignore[misc]
    assert value == weigh(model.head(x, target))
    for scale in (1.0, 1.0, -2.0):
        of_parameters, of_x = pull(torch.tensor(scale, dtype=torch.float64))
        for actual, wanted in zip([of_x, *of_parameters.values()], expected, strict=True):
            torch.testing.assert_close(actual, scale * wanted)


@training_or_not
@every_head_and_lengths
def test_values_without_gradients_inside(name: str, lengths: tuple[int, ...], training: bool) -> None:
    model, x, target = model_of(name, lengths, training)
    loss = functional(model, target)

    def with_value(parameters: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            value = loss(parameters, x)
        return loss(parameters, x), value

    for scale in (1.0, 0.5):
        parameters = {name: scale * value for name, value in parameters_of(model).items()}
        _, value = torch.func.grad(with_value, has_aux=True)(parameters)
        with torch.no_grad():
            torch.testing.assert_close(value, loss(parameters, x))


@every_head_and_lengths
def test_vmap_is_right_or_refused_by_torch(name: str, lengths: tuple[int, ...]) -> None:
    """Row by row. A mixture's probabilities and gradients written by hand have no rule for it."""
    model, x, target = model_of(name, lengths, training=False)
    head = model.head

    def log_probs(row: Tensor) -> Tensor:
        return head.log_probs(row.unsqueeze(0)).squeeze(0)

    def nll(row: Tensor, token: Tensor) -> Tensor:
        return head(row.unsqueeze(0), token.unsqueeze(0), smoothing=False).nll.sum()

    if "mixture" in name:
        with pytest.raises(RuntimeError, match="Batching rule not implemented"):
            torch.func.vmap(log_probs)(x)
    else:
        torch.testing.assert_close(torch.func.vmap(log_probs)(x), head.log_probs(x))
    of_each_row = torch.func.vmap(torch.func.grad(nll))
    if isinstance(head, (SoftmaxHead, SamplingHead)):
        leaf = x.clone().requires_grad_()
        head(leaf, target, smoothing=False).nll.sum().backward()
        torch.testing.assert_close(of_each_row(x, target), leaf.grad)
    else:
        with pytest.raises(RuntimeError, match="vmap"):
            of_each_row(x, target)


@pytest.mark.parametrize("variant", ["own", "batch"])
@pytest.mark.parametrize("slots", [SLOTS, SLOTS.sort().values], ids=["apart", "together"])
def test_grad_of_the_papers_samples(variant: str, slots: Tensor) -> None:
    """Groups whose rows lie together in the table are read and written in place."""
    book = Codebook((3, 4), slots)
    torch.manual_seed(1)
    head = SamplingHead(DIM, book, variant=variant).double()
    x, target = features_for(ROWS, DIM, torch.float64, 1).requires_grad_(), targets_for(book, ROWS, 2)
    weights = {name: parameter.detach() for name, parameter in head.named_parameters()}

    def loss(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return weigh(torch.func.functional_call(head, weights, (x, target)))

    of_weights, of_x = torch.func.grad(loss, (0, 1))(weights, x.detach())
    weigh(head(x, target)).backward()
    torch.testing.assert_close(of_x, x.grad)
    torch.testing.assert_close(of_weights["table.linear.weight"], head.table.weight.grad)


def test_a_gradient_in_memory_from_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped, "_HUGE", 0)
    test_grad_is_that_of_autograd("cascade", (3, 4), True, SLOTS)


def test_rows_sent_to_other_ranks(tmp_path: Path) -> None:
    """Here to the only one there is."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        rows = features_for(3, DIM, torch.float64, 0)
        sent = torch.func.grad(lambda x: _Moved.apply(x, [3], [3], None).square().sum())(rows)
        torch.testing.assert_close(sent, 2 * rows)
        summed = torch.func.grad(lambda x: _Total.apply(x, None).square().sum())(rows)
        torch.testing.assert_close(summed, 2 * rows)
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("use_reentrant", [False, True])
@training_or_not
@every_head_and_lengths
def test_recomputation_gives_the_same_gradients(
    name: str, lengths: tuple[int, ...], training: bool, use_reentrant: bool
) -> None:
    model, x, target = model_of(name, lengths, training)
    expected = by_autograd(model, x, target)
    leaf = x.clone().requires_grad_()
    model.zero_grad()
    total = checkpoint(lambda x: weigh(model.head(x, target)), leaf, use_reentrant=use_reentrant)
    total.backward()
    assert leaf.grad is not None
    actual = [leaf.grad, *(_or_zeros(parameter) for parameter in model.parameters())]
    for mine, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(mine, wanted)


@training_or_not
@every_head_and_lengths
def test_a_graph_kept_gives_the_same_gradients_again(
    name: str, lengths: tuple[int, ...], training: bool
) -> None:
    model, x, target = model_of(name, lengths, training)
    leaves = [x.requires_grad_(), *model.parameters()]
    total = weigh(model.head(x, target))
    first, second = (
        torch.autograd.grad(total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True)
        for _ in range(2)
    )
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@training_or_not
@every_head_and_lengths
def test_a_gradient_of_a_gradient_is_refused_or_right(
    name: str, lengths: tuple[int, ...], training: bool
) -> None:
    """Where none of it is written by hand, autograd can; nowhere may a part be left out unnoticed."""
    model, x, target = model_of(name, lengths, training)
    loss, parameters, step = functional(model, target), parameters_of(model), 1e-6
    direction = features_for(ROWS, DIM, torch.float64, 3)

    def slope(x: Tensor) -> Tensor:
        of_x: Tensor = torch.func.grad(loss, 1)(parameters, x)
        return (of_x * direction).sum()

    head = model.head
    is_by_hand = not isinstance(head, SoftmaxHead) or head.chunk > 0
    if isinstance(head, SamplingHead):
        is_by_hand = training  # else the softmax, of fewer rows than a piece
    if is_by_hand:
        with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
            torch.func.grad(slope)(x)
        return
    actual = (torch.func.grad(slope)(x) * direction).sum()
    expected = (slope(x + step * direction) - slope(x - step * direction)) / (2 * step)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
