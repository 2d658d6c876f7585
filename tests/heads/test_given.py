"""What a head is given wrongly is told, whatever the head, where it could compute something all the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead
from mhe_fairseq.heads.given import checked_target

V, D, N = 23, 8, 6
BOOK = Codebook((5, 5), vocab_size=V)

MAKE: dict[str, Callable[[], OutputHead]] = {
    "softmax": lambda: SoftmaxHead(D, BOOK),
    "cascade": lambda: CascadeHead(D, BOOK),
    "product": lambda: ProductHead(D, BOOK),
    "sampling": lambda: SamplingHead(D, BOOK, groups=3),
    "sampling-predicted": lambda: SamplingHead(D, BOOK, groups=3, variant="predicted"),
}

each_head = pytest.mark.parametrize("name", MAKE)


def features(*shape: int) -> Tensor:
    return torch.randn(*shape, D, generator=torch.Generator().manual_seed(1))


@each_head
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("token", [-1, -100, V, 2**40])
def test_a_token_that_there_is_not(name: str, training: bool, token: int) -> None:
    head = MAKE[name]().train(training)
    target = torch.arange(N)
    target[3] = token
    for ask in (lambda: head(features(N), target), lambda: head.log_prob(features(N), target)):
        with pytest.raises(MHEError, match=rf"tokens of a target are 0\.\.{V - 1}; got {token} "):
            ask()
    head(features(0), torch.empty(0, dtype=torch.long))


@each_head
def test_features_are_rows(name: str) -> None:
    head = MAKE[name]()
    for x, said in (
        (features(2, 3), r"\(N, 8\); got \(2, 3, 8\); flatten\(0, -2\) makes rows of them"),
        (features(), r"\(N, 8\); got \(8,\)$"),
        (torch.randn(4, D + 1), r"\(N, 8\); got \(4, 9\)$"),
    ):
        target = torch.zeros(len(x), dtype=torch.long)
        for ask in (
            lambda: head(x, target),  # noqa: B023
            lambda: head.log_prob(x, target),  # noqa: B023
            lambda: head.log_probs(x),  # noqa: B023
            lambda: head.topk(x, 3),  # noqa: B023
            lambda: head.label_topk(x, 3),  # noqa: B023
            lambda: head.log_prob_of(x, torch.tensor([1, 2])),  # noqa: B023
        ):
            with pytest.raises(MHEError, match=f"a head reads features of shape {said}"):
                ask()


@each_head
def test_a_target_is_a_token_a_row(name: str) -> None:
    head = MAKE[name]()
    for target in (torch.zeros(1, dtype=torch.long), torch.zeros(N, 1, dtype=torch.long), torch.tensor(3)):
        with pytest.raises(MHEError, match=f"one token for each of the {N} rows of features; got shape"):
            head.log_prob(features(N), target)
    for dtype in (torch.float32, torch.bool):
        with pytest.raises(MHEError, match=f"got {dtype}"):
            head(features(N), torch.zeros(N, dtype=dtype))


@each_head
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integers_are_tokens(name: str, training: bool, dtype: torch.dtype) -> None:
    head = MAKE[name]().train(training)
    head.set_num_updates(3)
    target = torch.arange(N) * 3
    wanted, found = (head(features(N), each) for each in (target, target.to(dtype)))
    assert torch.equal(found.nll, wanted.nll)
    wanted, found = (head.log_prob(features(N), target=each) for each in (target, target.to(dtype)))
    assert torch.equal(found, wanted)


def test_a_program_that_is_compiled_does_not_look_at_numbers() -> None:
    def look(target: Tensor) -> Tensor:
        return checked_target(target, torch.zeros(3, D), V) + 1

    compiled = torch.compile(look, backend="eager", fullgraph=True)
    assert compiled(torch.tensor([1, 2, 3])).tolist() == [2, 3, 4]
