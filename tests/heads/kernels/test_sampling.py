"""A sampling head's loss by kernels, against plain torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import SamplingHead
from mhe_fairseq.heads.kernels import launch
from mhe_fairseq.heads.kernels.step_counts import training_launches
from mhe_fairseq.heads.sampling import kernels as sampling_kernels
from tests.drawn import examples
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
from tests.heads.oracle import codebooks, features_for, softmax_oracle, targets_for

FLOAT = torch.float32
SHUFFLED = Codebook((9, 21), torch.randperm(189, generator=torch.Generator().manual_seed(1))[:150])


class Model(nn.Module):
    """A head, and the embedding that it may be tied to."""

    def __init__(self, book: Codebook, dim: int, groups: int, tied: bool, variant: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(book), dim) if tied else None
        self.head = SamplingHead(dim, book, groups=groups, tied=self.embed, variant=variant)


def build(
    book: Codebook,
    dim: int = 16,
    groups: int = 3,
    tied: bool = False,
    dtype: torch.dtype = FLOAT,
    seed: int = 1,
    variant: str = "shared",
) -> Model:
    torch.manual_seed(seed)
    model = Model(book, dim, groups, tied, variant)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.4)
    return model.to(dtype).train()


def groups_of(book: Codebook) -> int:
    return len(book.digits(torch.arange(len(book)))[:, 0].unique())


@pytest.mark.slow
@given(
    book=codebooks(max_vocab=90, min_heads=2).filter(lambda book: groups_of(book) > 1),
    share=st.floats(0, 1),
    tied=st.booleans(),
    count=st.sampled_from([0, 1, 2, 9, 33]),
    dim=st.sampled_from([3, 16, 21]),
    smoothing=st.booleans(),
    accuracy=st.booleans(),
    seed=st.integers(0, 99),
    variant=st.sampled_from(sampling_kernels.SERVED),
)
@examples(30, phases=PHASES)
def test_losses_and_gradients_are_those_of_plain_torch(
    book: Codebook,
    share: float,
    tied: bool,
    count: int,
    dim: int,
    smoothing: bool,
    accuracy: bool,
    seed: int,
    variant: str,
) -> None:
    groups = 1 + int(share * (groups_of(book) - 2))
    model = build(book, dim, groups, tied, seed=seed, variant=variant)
    x, y = features_for(count, dim, FLOAT, seed), targets_for(book, count, seed)
    check_same(model, model.head, x, y, smoothing=smoothing, accuracy=accuracy)


@pytest.mark.parametrize("tied", [False, True])
def test_a_group_that_is_always_drawn(tied: bool) -> None:
    """The first groups of a dictionary in order of frequency: often a row's own, too."""
    book = Codebook((12, 10), vocab_size=115)
    model = build(book, groups=5, tied=tied)
    assert float(model.head.inclusion[0]) == 1.0
    x, y = features_for(75, 16, FLOAT, 1), targets_for(book, 75, 1) % 30
    check_same(model, model.head, x, y, accuracy=True)


@pytest.mark.slow
@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype: torch.dtype, variant: str) -> None:
    model = build(SHUFFLED, dtype=dtype, variant=variant)
    x, y = features_for(40, 16, dtype, 1), targets_for(SHUFFLED, 40, 1)
    check_same(model, model.head, x, y)


@pytest.mark.slow
@given(
    book=codebooks(max_vocab=90, min_heads=2).filter(lambda book: groups_of(book) > 1),
    count=st.sampled_from([1, 9, 33]),
    smoothing=st.booleans(),
    accuracy=st.booleans(),
    seed=st.integers(0, 99),
)
@examples(12, phases=PHASES)
def test_eval_mode_is_the_exact_softmax(
    book: Codebook, count: int, smoothing: bool, accuracy: bool, seed: int
) -> None:
    head = build(book, groups=1, seed=seed).head.eval()
    x, y = features_for(count, 16, FLOAT, seed), targets_for(book, count, seed)
    with torch.no_grad():
        found = head(x, y, smoothing=smoothing, accuracy=accuracy)
    expected = softmax_oracle(head, x).detach()
    picked = expected.gather(1, y.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(found.nll.double(), -picked, rtol=1e-5, atol=1e-5)
    if smoothing:
        torch.testing.assert_close(found.smooth.double(), -expected.mean(1), rtol=1e-5, atol=1e-5)
    if accuracy:
        assert torch.equal(found.stats["accuracy"].bool(), expected.argmax(1) == y)


@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_scoring_stores_no_logits(variant: str) -> None:
    head = build(SHUFFLED, variant=variant).head
    check_scoring_stores_no_logits(head, features_for(20, 16, FLOAT, 1), targets_for(SHUFFLED, 20, 1))


@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_frozen_table(variant: str) -> None:
    model = build(SHUFFLED, variant=variant)
    model.head.table.weight.requires_grad_(False)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(SHUFFLED, 20, 1)
    check_same(model, model.head, x, y)
    assert model.head.table.weight.grad is None


@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_a_graph_kept_gives_the_same_gradients_again_to_the_bit(variant: str) -> None:
    head = build(SHUFFLED, variant=variant).head
    check_same_again(head, features_for(40, 16, FLOAT, 1), targets_for(SHUFFLED, 40, 1))


@pytest.mark.parametrize("part", ["nll", "smooth"])
@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_one_of_both_losses(part: str, variant: str) -> None:
    head = build(SHUFFLED, variant=variant).head
    x, y = features_for(20, 16, FLOAT, 1).requires_grad_(), targets_for(SHUFFLED, 20, 1)
    check_one_loss(head, part, [x, head.table.weight], y)


@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_autocast_gives_fp32_gradients_of_fp32_tables(variant: str) -> None:
    model = build(SHUFFLED, variant=variant)
    x, y = features_for(20, 16, FLOAT, 1), targets_for(SHUFFLED, 20, 1)
    found = []
    for context in (torch.enable_grad(), plain_torch()):
        model.head.set_num_updates(3)
        with context, torch.autocast("cpu", torch.bfloat16):
            found.append(losses_and_gradients(model, model.head, x, y))
    for name, value in found[1].items():
        scale = float(value.abs().max())
        assert found[0][name].dtype == value.dtype
        torch.testing.assert_close(
            found[0][name], value, rtol=0, atol=scale * TOLERANCE[torch.bfloat16], msg=name
        )


@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_torch_func(variant: str) -> None:
    head = build(SHUFFLED, variant=variant).head
    x, y = features_for(20, 16, FLOAT, 1), targets_for(SHUFFLED, 20, 1)
    head.set_num_updates(3)
    head(x, y).nll.sum().backward()
    weight = head.table.weight.detach()

    def total(weight: torch.Tensor) -> torch.Tensor:
        loss = torch.func.functional_call(head, {"table.linear.weight": weight}, (x, y))
        nll: torch.Tensor = loss.nll
        return nll.sum()

    torch.testing.assert_close(torch.func.grad(total)(weight), head.table.weight.grad)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("variant", sampling_kernels.SERVED)
def test_a_step_is_few_operators_and_never_waits(tied: bool, variant: str) -> None:
    head = build(SHUFFLED, tied=tied, variant=variant).head
    x, y = features_for(50, 16, FLOAT, 1).requires_grad_(), targets_for(SHUFFLED, 50, 1)
    operators = operators_of_a_step(head, x, y)
    # One more on a GPU: what was drawn is copied there.
    kind = "sampling" if variant == "shared" else "predicted"
    assert operators.total + (1 if variant == "shared" else 2) <= training_launches(kind), operators.counts
    assert not operators.found


def test_other_variants_are_plain_torchs() -> None:
    launches: list[launch.Launch] = []

    def watch(launched: launch.Launch) -> bool:
        launches.append(launched)
        return True

    with launch.watched(watch):
        for variant in ("own", "batch"):
            head = SamplingHead(16, SHUFFLED, variant=variant).train()
            head(features_for(5, 16, FLOAT, 1), targets_for(SHUFFLED, 5, 1))
    assert not launches


def test_the_exact_loss_in_training_is_torchs() -> None:
    """It is the softmax head's, which is one product."""
    head = build(SHUFFLED).head
    x, target = features_for(9, 16, FLOAT, 1).requires_grad_(), targets_for(SHUFFLED, 9, 1)
    assert sampling_kernels.serves(head, x)
    head.exact = True
    assert not sampling_kernels.serves(head, x)
    expected = softmax_oracle(head, x).gather(1, target.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(head(x, target).nll, -expected.to(FLOAT), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not sampling_kernels.serves(head, x)
        assert sampling_kernels.serves(head.eval(), x)
