"""When a product's kernels are launched: in a step, in scoring, for any number of tokens, and not at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mhe_fairseq.heads.kernels import dispatch, launch, product_tables
from mhe_fairseq.heads.kernels.step_counts import training_launches
from mhe_fairseq.heads.product import kernels as product_kernels
from tests.heads.kernels.both import Operators, losses_and_gradients, operators_of_a_step, plain_torch
from tests.heads.kernels.product_cases import HOLED, WHOLE, batch, build, mixtures_1_or_3


@mixtures_1_or_3
def test_scoring_has_a_block_of_logits_at_a_time(mixtures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 70)
    monkeypatch.setattr(product_kernels, "_BLOCK", 1)
    rows = []

    def watch(launched: launch.Launch) -> bool:
        rows.append(len(launched.arguments[0]))
        return True

    with torch.no_grad(), launch.watched(watch):
        found = head(x, y, accuracy=True)
    assert rows == [64, 64, 6, 6]
    with torch.no_grad(), plain_torch():
        head.set_num_updates(0)
        expected = head(x, y, accuracy=True)
    torch.testing.assert_close(found.nll, expected.nll)
    assert found.stats.keys() == expected.stats.keys()
    for name, value in expected.stats.items():
        torch.testing.assert_close(found.stats[name], value, msg=name)
    assert head.log_prob(x, y).grad_fn is not None, "scores can be differentiated"


@pytest.mark.parametrize(("mixtures", "kind"), [(1, "product"), (8, "mixture")])
def test_a_step_is_few_operators_and_never_waits(mixtures: int, kind: str) -> None:
    head = build(HOLED, mixtures).head
    x, y = batch(HOLED, 5)
    operators = operators_of_a_step(head, x.requires_grad_(), y)
    # One more on a GPU for a mixture: what was drawn is copied there.
    assert operators.total + (mixtures > 1) <= training_launches(kind), operators.counts
    assert not operators.found


@mixtures_1_or_3
def test_validation_never_waits_where_there_are_no_holes(mixtures: int) -> None:
    head = build(WHOLE, mixtures).head.eval()
    operators, accuracy = Operators(), mixtures == 1
    with torch.no_grad():
        head(*batch(WHOLE, 9), accuracy=accuracy)  # makes the codebook's tables
        with operators, launch.watched(operators.saw):
            head(*batch(WHOLE, 9), accuracy=accuracy)
    assert not operators.found


@mixtures_1_or_3
def test_any_number_of_tokens_is_the_same_kernel(mixtures: int) -> None:
    """What Triton compiles for depends on types, constants, and whether memory is aligned; and on numbers."""
    head = build(HOLED, mixtures).head
    seen: set[tuple[object, ...]] = set()
    counts = [1, 2, 3, 15, 16, 17, 31, 32, 48, 63, 64, 65, *range(100, 190)]

    def watch(launched: launch.Launch) -> bool:
        kernel = launched.kernel
        # In the interpreter a kernel is a plain function; what it was decorated with is kept beside it.
        names = list(kernel.arg_names)
        key: list[object] = [kernel.__name__, tuple(sorted(launched.constants.items()))]
        for name, each in zip(names, launched.arguments, strict=False):
            if isinstance(each, Tensor):
                key.append((each.dtype, each.data_ptr() % 16))
            elif each is None:
                key.append(None)
            else:
                assert name in ("n", "total_rows", "vocab", "nll_stride", "smooth_stride")
        seen.add(tuple(key))
        return False

    with launch.watched(watch):
        for count in counts:
            x, y = batch(HOLED, count)
            loss = head(x, y)
            assert loss.smooth is not None
            (loss.nll.mean() + loss.smooth.mean()).backward()
    assert len(seen) == 4


def test_what_kernels_are_not_for_is_plain_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product_tables, "MOST_PATHS", 1)
    head = build(HOLED).head
    launches: list[launch.Launch] = []
    with launch.watched(lambda each: launches.append(each) or True):  # type: ignore[func-returns-value]
        found = head(*batch(HOLED, 9)).nll
        assert head.to(torch.float64)(*batch(HOLED, 9, torch.float64)).nll.dtype == torch.float64
    assert not launches
    with plain_torch():
        torch.testing.assert_close(found, build(HOLED).head(*batch(HOLED, 9)).nll)


@mixtures_1_or_3
def test_a_kernel_that_does_not_work_leaves_it_to_plain_torch(
    mixtures: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mhe_fairseq.heads.kernels import product

    monkeypatch.setattr(dispatch, "_ready", set())
    monkeypatch.setattr(dispatch, "_said", set())

    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("not on this GPU")

    model = build(HOLED, mixtures)
    model.head.set_num_updates(3)
    x, y = batch(HOLED, 9)
    with plain_torch():
        expected = losses_and_gradients(model, model.head, x, y)
    with monkeypatch.context() as patched:
        patched.setattr(product, "backward_pass", fails)
        found = losses_and_gradients(model, model.head, x, y)
    assert "not on this GPU" in caplog.text
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@mixtures_1_or_3
def test_a_rehearsal_is_the_launches_of_a_step(mixtures: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_ready", set())
    head = build(HOLED, mixtures).head
    names: list[str] = []

    def watch(launched: launch.Launch) -> bool:
        names.append(launched.kernel.__name__)
        return True

    x, y = batch(HOLED, 5)
    with launch.watched(watch):
        for _ in range(2):
            loss = head(x, y)
            assert loss.smooth is not None
            (loss.nll.sum() + loss.smooth.sum()).backward()
    assert names == ["digit_sums", "combine", "combine_backward", "digit_gradients"] * 3
