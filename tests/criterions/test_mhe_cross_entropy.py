"""``mhe_cross_entropy`` is ``label_smoothed_cross_entropy`` without V-wide tensors."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.label_smoothed_cross_entropy import (
    LabelSmoothedCrossEntropyCriterion,
    label_smoothed_nll_loss,
)
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.criterions import MHECrossEntropyCriterion
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.models.decoder import HeadDecoderMixin
from tests.commands import logged, train

VOCAB, DIM, PAD = 23, 6, 1


class FeatureModel(nn.Module, HeadDecoderMixin):
    """A model whose features are its input."""

    has_mhe_head = True

    @property
    def head_side(self) -> FeatureModel:
        return self

    def get_targets(self, sample: dict[str, Any], net_output: Any) -> Tensor:
        target: Tensor = sample["target"]
        return target

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = ProductHead(DIM, Codebook((4, 6), vocab_size=VOCAB)).double()

    def forward(self, features: Tensor, **kwargs: Any) -> Any:
        return self.head_loss(features, kwargs["target"], PAD, kwargs["smoothing"], kwargs["accuracy"])


def criterion(eps: float = 0.1, **options: Any) -> MHECrossEntropyCriterion:
    task = SimpleNamespace(target_dictionary=_Dictionary())
    return MHECrossEntropyCriterion(task, options.pop("sentence_avg", False), eps, **options)


class _Dictionary:
    def pad(self) -> int:
        return PAD

    def __len__(self) -> int:
        return VOCAB


def sample(lengths: list[int]) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(1)
    width = max(lengths)
    target = torch.randint(2, VOCAB, (len(lengths), width), generator=generator)
    for row, length in enumerate(lengths):
        target[row, length:] = PAD
    features = torch.randn(len(lengths), width, DIM, generator=generator, dtype=torch.float64)
    return {"net_input": {"features": features}, "target": target, "ntokens": sum(lengths)}


@pytest.mark.parametrize("eps", [0.0, 0.1, 0.4])
def test_loss_is_fairseqs_of_the_dense_distribution(eps: float) -> None:
    model, batch = FeatureModel(), sample([5, 3, 1])
    loss, size, log = criterion(eps)(model, batch)
    log_probs = model.head.log_probs(batch["net_input"]["features"].flatten(0, 1))
    expected, nll = label_smoothed_nll_loss(log_probs, batch["target"].flatten(), eps, ignore_index=PAD)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(log["nll_loss"], nll.detach())
    assert size == log["ntokens"] == 9
    assert log["mhe_tokens"] == 9


def test_unreduced_loss_keeps_the_shape() -> None:
    model, batch = FeatureModel(), sample([5, 3])
    loss, _, _ = criterion()(model, batch, reduce=False)
    assert loss.shape == (2, 5)
    assert not loss[1, 3:].any()
    torch.testing.assert_close(loss.sum(), criterion()(model, batch)[0])


def test_ignored_prefix_and_sentence_average() -> None:
    model, batch = FeatureModel(), sample([5, 3])
    loss, size, log = criterion(ignore_prefix_size=2, sentence_avg=True)(model, batch)
    whole, _, _ = criterion()(model, batch, reduce=False)
    torch.testing.assert_close(loss, whole[:, 2:].sum())
    assert size == 2
    assert log["mhe_tokens"] == 4
    everything, _, _ = criterion(ignore_prefix_size=9)(model, batch)
    everything.backward()
    assert everything.item() == 0 and model.head.weight.grad is not None


@pytest.mark.parametrize("options", [{}, {"ignore_prefix_size": 2}])
@pytest.mark.parametrize("reduce", [True, False])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_compute_loss_is_fairseqs(eps: float, reduce: bool, options: dict[str, int]) -> None:
    """Of what a decoder gave; what tasks make of it is of fairseq's shape."""
    model, batch = FeatureModel(), sample([5, 3, 1])
    mine = criterion(eps, **options)
    stock = LabelSmoothedCrossEntropyCriterion(mine.task, False, eps, **options)
    output = (batch["net_input"]["features"].requires_grad_(), None)
    results = [each.compute_loss(model, output, batch, reduce) for each in (mine, stock)]
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    results[0][0].sum().backward()
    assert model.head.weight.grad is not None and output[0].grad is not None


def test_model_without_a_head_is_refused() -> None:
    with pytest.raises(MHEError, match="needs a model with an mhe head.*this one is Linear"):
        criterion().compute_loss(nn.Linear(2, 2), (torch.zeros(1, 2, 2), None), sample([2]))
    with pytest.raises(MHEError, match="needs a model with an mhe head.*this one is Linear"):
        criterion()(nn.Linear(2, 2), sample([2]))


@pytest.mark.parametrize("eps", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(MHEError, match="--label-smoothing must be at least 0 and below 1"):
        criterion(eps)


@pytest.mark.slow
def test_flags_mean_what_they_mean_in_fairseq(toy_data: Path, tmp_path: Path) -> None:
    flags = ["--report-accuracy", "--ignore-prefix-size", "1", "--sentence-avg", "--label-smoothing", "0.2"]
    flags += ["--max-update", "5", "--no-save"]
    ours = train(
        toy_data, tmp_path, "--mhe-head", "softmax", "--criterion", "mhe_cross_entropy", *flags,
        "--tensorboard-logdir", str(tmp_path / "tensorboard"),
    )  # fmt: skip
    stock = train(
        toy_data, tmp_path, "--criterion", "label_smoothed_cross_entropy", *flags, arch="transformer_tiny"
    )
    for key in ("loss", "nll_loss", "accuracy"):
        a, b = (logged(run.stdout + run.stderr, key) for run in (ours, stock))
        assert len(a) == len(b) == 5
        assert a == pytest.approx(b, abs=2e-3)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard" / "train_inner"))
    events.Reload()
    assert {"nll_loss", "accuracy"} <= set(events.Tags()["scalars"])


@pytest.mark.slow
def test_digits_are_logged(toy_data: Path, tmp_path: Path) -> None:
    done = train(
        toy_data, tmp_path, "--mhe-head", "product", "--criterion", "mhe_cross_entropy", "--label-smoothing",
        "0.1", "--max-update", "4", "--no-save",
    )  # fmt: skip
    said = done.stdout + done.stderr
    nll, first, second = (logged(said, key) for key in ("nll_loss", "digit_1_nll", "digit_2_nll"))
    # No holes and one component: the token's loss is the digits' sum.
    assert nll == pytest.approx([a + b for a, b in zip(first, second, strict=True)], abs=5e-3)
    for key in ("valid_accuracy", "valid_digit_1_accuracy", "valid_digit_2_accuracy"):
        assert all(0 <= value <= 100 for value in logged(said, key, kind="valid"))
        assert logged(said, key, kind="valid")
