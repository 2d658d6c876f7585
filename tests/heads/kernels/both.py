"""A head's loss by kernels and in plain torch, on the same batch."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import torch
from hypothesis import Phase
from torch import Tensor, nn

from mhe_fairseq.heads import HeadLoss, OutputHead
from mhe_fairseq.heads.kernels import dispatch, launch
from tests.waits import Waits

#: Relative to the largest number of a tensor.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}

#: Of hypothesis: the interpreter is slow, and to shrink a failing case would take minutes.
PHASES = (Phase.explicit, Phase.generate)


class Operators(Waits):
    """Counts operators, views apart, and launches of kernels; kernels do not run."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        if not any(each.alias_info is not None and not each.alias_info.is_write for each in returns):
            self.counts[str(func)] += 1
        return super().__torch_dispatch__(func, types, args, kwargs)

    def saw(self, launched: launch.Launch) -> bool:
        self.counts[launched.kernel.__name__] += 1
        return False

    @property
    def total(self) -> int:
        return sum(self.counts.values())


def operators_of_a_step(head: OutputHead, features: Tensor, target: Tensor) -> Operators:
    """Of a training step as a criterion makes it."""
    head.train()
    operators = Operators()
    with launch.watched(operators.saw):
        # What is made once for a codebook is not a step's.
        step(head, features, target)
        head.zero_grad()
        features.grad = None
        operators.counts.clear()
        with operators:
            step(head, features, target)
    return operators


def step(head: OutputHead, features: Tensor, target: Tensor) -> HeadLoss:
    loss = head(features, target, smoothing=True)
    assert loss.smooth is not None
    (0.9 * loss.nll.sum() + 0.1 * loss.smooth.sum()).backward()
    return loss


def losses_and_gradients(
    model: nn.Module, head: OutputHead, features: Tensor, target: Tensor, **kwargs: Any
) -> dict[str, Tensor]:
    """Every number that a training reads of a head."""
    features = features.detach().requires_grad_()
    model.zero_grad()
    loss = head(features, target, **kwargs)
    found = {"nll": loss.nll, **loss.stats}
    weights = torch.linspace(0.2, 1.7, len(target)).to(loss.nll)
    total = (loss.nll * weights).sum()
    if loss.smooth is not None:
        found["smooth"] = loss.smooth
        total = total + (loss.smooth * weights.flip(0) * 0.3).sum()
    total.backward()
    assert features.grad is not None
    found["features"] = features.grad
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} got no gradient"
            found[name] = parameter.grad
    return {name: value.detach().clone() for name, value in found.items()}


def plain_torch() -> Any:
    """A context in which kernels are off."""
    return _Plain()


class _Plain:
    def __enter__(self) -> None:
        self.before = os.environ.get(dispatch.SWITCH)
        os.environ[dispatch.SWITCH] = "0"

    def __exit__(self, *_: Any) -> None:
        if self.before is None:
            del os.environ[dispatch.SWITCH]
        else:
            os.environ[dispatch.SWITCH] = self.before


def check_same(model: nn.Module, head: OutputHead, features: Tensor, target: Tensor, **kwargs: Any) -> None:
    """Kernels have been launched, and gave what plain torch gives."""
    head.set_num_updates(3)  # what is drawn in an update depends on its number only
    launched = 0

    def count(_: launch.Launch) -> bool:
        nonlocal launched
        launched += 1
        return True

    with launch.watched(count):
        found = losses_and_gradients(model, head, features, target, **kwargs)
    assert bool(launched) == bool(len(target)), "kernels did not serve" if len(target) else "nothing to do"
    with plain_torch():
        expected = losses_and_gradients(model, head, features, target, **kwargs)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        if not value.numel():
            continue
        scale = max(1e-2, float(value.abs().max()))
        error = float((found[name].double() - value.double()).abs().max()) / scale
        assert error <= TOLERANCE[features.dtype], f"{name} is off by {error:.1e} of its largest number"


def check_scoring_stores_no_logits(head: OutputHead, features: Tensor, target: Tensor) -> None:
    """And gives what plain torch gives."""
    stored = []

    def watch(launched: launch.Launch) -> bool:
        if launched.kernel.__name__ == "score_kernel":
            stored.append(launched.constants["STORE"])
        return True

    with torch.no_grad(), launch.watched(watch):
        found = head.log_prob(features, target)
    assert stored == [False]
    with torch.no_grad(), plain_torch():
        torch.testing.assert_close(found, head.log_prob(features, target))


def check_same_again(head: OutputHead, features: Tensor, target: Tensor) -> None:
    """A graph kept gives the same gradients again, to the bit."""
    features.requires_grad_()
    wanted = [features, *head.parameters()]
    loss = head.train()(features, target)
    assert loss.smooth is not None
    first = torch.autograd.grad(loss.nll.sum() + loss.smooth.sum(), wanted, retain_graph=True)
    again = torch.autograd.grad(loss.nll.sum() + loss.smooth.sum(), wanted)
    for one, other in zip(first, again, strict=True):
        assert torch.equal(one, other)


def check_one_loss(head: OutputHead, part: str, wanted: list[Tensor], target: Tensor) -> None:
    """``nll`` or ``smooth`` alone; the features are the first of ``wanted``."""
    grads = []
    for context in (torch.enable_grad(), plain_torch()):
        head.train().set_num_updates(3)
        with context:
            grads.append(torch.autograd.grad(getattr(head(wanted[0], target), part).sum(), wanted))
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
