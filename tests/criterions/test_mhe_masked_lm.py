"""``mhe_masked_lm``: what it logs, and the tasks and models it is not for."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.logging import metrics
from torch import nn

from mhe_fairseq.criterions import MHECrossEntropyCriterion, MHEMaskedLMCriterion
from mhe_fairseq.errors import MHEError
from tests.heads_of_models import PAD, VOCAB
from tests.models.test_roberta import HEADS, batch, build, classifying_task, masked_task, sample
from tests.models.test_transformer_lm import build as build_lm


def criterion(task: Any = None, eps: float = 0.0, **options: Any) -> MHEMaskedLMCriterion:
    return MHEMaskedLMCriterion(task or masked_task(), label_smoothing=eps, **options)


def logged(*logs: dict[str, Any]) -> dict[str, float]:
    with metrics.aggregate(new_root=True) as found:
        MHEMaskedLMCriterion.reduce_metrics(list(logs))
    return dict(found.get_smoothed_values())


@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_averages_are_over_masked_tokens(eps: float) -> None:
    model = build(**HEADS["product"]).eval()
    tokens, target = batch()
    masked = target.ne(PAD)
    loss, size, log = criterion(eps=eps)(model, sample(tokens, target))
    exact = model(tokens)[0][masked]
    nll = -exact.gather(-1, target[masked].unsqueeze(-1)).sum()
    eps_i = eps / (VOCAB - 1)
    torch.testing.assert_close(loss, (1 - eps - eps_i) * nll - eps_i * exact.sum())
    assert int(size) == int(masked.sum())
    found = logged(log)
    assert found["loss"] == pytest.approx(float(loss) / int(size) / math.log(2), abs=1e-3)
    assert found["nll_loss"] == pytest.approx(float(nll) / int(size) / math.log(2), abs=1e-3)
    assert found["ppl"] == pytest.approx(2 ** found["nll_loss"], rel=1e-2)
    right = exact.argmax(-1).eq(target[masked]).float().mean()
    assert found["accuracy"] == pytest.approx(100 * float(right), abs=1e-3)
    assert {"digit_1_nll", "digit_2_nll", "digit_1_accuracy", "digit_2_accuracy"} <= set(found)


def test_processes_add_up() -> None:
    model = build(**HEADS["cascade"]).eval()
    (tokens, target), task = batch(), masked_task()
    whole = criterion(task)(model, sample(tokens, target))[2]
    parts = [criterion(task)(model, sample(tokens[i:j], target[i:j]))[2] for i, j in ((0, 1), (1, 3))]
    # The first row has nothing masked: a process without anything to predict.
    assert int(parts[0]["sample_size"]) == 0
    assert logged(*parts) == pytest.approx(logged(whole), abs=2e-3)
    assert logged(parts[0])["loss"] == 0
    assert MHEMaskedLMCriterion.logging_outputs_can_be_summed()


def test_accuracy_in_training_when_asked() -> None:
    model = build(**HEADS["cascade"]).train()
    batched = sample(*batch())
    assert "mhe_accuracy" not in criterion()(model, batched)[2]
    assert "mhe_accuracy" in criterion(report_accuracy=True)(model, batched)[2]


def test_unreduced_loss_keeps_the_shape() -> None:
    model = build(**HEADS["cascade"]).eval()
    tokens, target = batch()
    loss, _, _ = criterion()(model, sample(tokens, target), reduce=False)
    assert loss.shape == target.shape
    torch.testing.assert_close(loss.sum(), criterion()(model, sample(tokens, target))[0])


@pytest.mark.parametrize("eps", [-0.1, 1.0])
def test_smoothing_out_of_range_is_refused(eps: float) -> None:
    with pytest.raises(MHEError, match="--label-smoothing must be at least 0 and below 1"):
        criterion(eps=eps)


# ---- what it is not for


def test_tasks_without_masked_tokens() -> None:
    for task in (classifying_task(), SimpleNamespace(target_dictionary=masked_task().dictionary)):
        with pytest.raises(MHEError) as error:
            criterion(task)
        assert str(error.value) == (
            "--criterion mhe_masked_lm predicts the tokens that --task masked_lm masks, and the task is "
            f"{type(task).__name__}; for language models and translation give --criterion mhe_cross_entropy, "
            "for sentences with labels --criterion sentence_prediction"
        )


def test_the_other_criterion_with_masked_tokens() -> None:
    with pytest.raises(MHEError) as error:
        MHECrossEntropyCriterion(masked_task(), False, 0.0)
    assert str(error.value) == (
        "--criterion mhe_cross_entropy predicts every token, and MaskedLMTask masks some and asks for these; "
        "give --criterion mhe_masked_lm and --arch mhe_roberta or the like"
    )


def test_models_of_another_kind() -> None:
    batched = sample(*batch())
    with pytest.raises(MHEError) as error:
        criterion()(nn.Linear(2, 2), batched)
    assert str(error.value) == (
        "--criterion mhe_masked_lm needs a model with an mhe head, such as --arch mhe_roberta; this one is "
        "Linear. For it, --criterion masked_lm computes the same loss"
    )
    with pytest.raises(MHEError) as error:
        criterion()(build_lm(), batched)
    assert str(error.value) == (
        "--criterion mhe_masked_lm is for --arch mhe_roberta and the like, and the model is "
        "MHETransformerLanguageModel; give --criterion mhe_cross_entropy"
    )
    other = SimpleNamespace(target_dictionary=masked_task().dictionary)
    with pytest.raises(MHEError, match="the model is MHERobertaModel; give --criterion mhe_masked_lm"):
        MHECrossEntropyCriterion(other, False, 0.0)(build(), batched)
