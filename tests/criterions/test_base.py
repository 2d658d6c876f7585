"""What the criterions share: when targets are counted, and that nothing between forward and loss waits."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest
import torch
from fairseq.models import build_model
from torch import Tensor

from mhe_fairseq.criterions import MHECrossEntropyCriterion, MHEMaskedLMCriterion
from mhe_fairseq.criterions import base as module
from mhe_fairseq.models.target_count import TargetCount
from tests.models import test_roberta, test_transformer_lm
from tests.waits import Waits

PAD = 1
HEAD: dict[str, Any] = {"mhe_head": "product", "mhe_lengths": "5,10", "mhe_mixtures": 2}


def of_translation() -> tuple[Any, Any, dict[str, Any]]:
    words = test_transformer_lm.words()
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words)
    # 56 slots, so that some have no token.
    model = build_model(Namespace(arch="mhe_transformer_tiny", **{**HEAD, "mhe_lengths": "7,8"}), task)
    tokens, target = test_transformer_lm.batch()
    net_input = {"src_tokens": tokens, "src_lengths": tokens.ne(PAD).sum(1), "prev_output_tokens": tokens}
    return model, MHECrossEntropyCriterion(task, False, 0.1), {"net_input": net_input, "target": target}


def of_a_language_model() -> tuple[Any, Any, dict[str, Any]]:
    task, (tokens, target) = test_transformer_lm.task_of(), test_transformer_lm.batch()
    criterion = MHECrossEntropyCriterion(task, False, 0.1, ignore_prefix_size=2)
    model = test_transformer_lm.build(**HEAD)
    return model, criterion, {"net_input": {"src_tokens": tokens}, "target": target}


def of_masked_tokens() -> tuple[Any, Any, dict[str, Any]]:
    task, (tokens, target) = test_roberta.masked_task(), test_roberta.batch()
    criterion = MHEMaskedLMCriterion(task, label_smoothing=0.1)
    model = test_roberta.build(task, **HEAD)
    return model, criterion, {"net_input": {"src_tokens": tokens}, "target": target}


Made = Callable[[], tuple[Any, Any, dict[str, Any]]]
every_kind = pytest.mark.parametrize("made", [of_translation, of_a_language_model, of_masked_tokens])


@every_kind
def test_nothing_between_the_forward_and_the_loss_waits(made: Made) -> None:
    model, criterion, sample = made()
    # Not what is to be counted, of which a wrong number would drop tokens.
    sample["ntokens"] = 1000
    side, events, waits = model.head_side, [], Waits()
    body, head_loss = side.forward, side.head_loss

    class Counted(TargetCount):
        def __init__(self, target: Tensor, padding: int) -> None:
            super().__init__(target, padding)
            events.append("counted")

    def forward(*args: Any, **kwargs: Any) -> Any:
        events.append("forward")
        return body(*args, **kwargs)

    def loss_of(*args: Any) -> Any:
        events.append("loss")
        with waits:
            return head_loss(*args)

    with (
        mock.patch.object(module, "TargetCount", Counted),
        mock.patch.object(side, "forward", forward),
        mock.patch.object(side, "head_loss", loss_of),
    ):
        loss, _, log = criterion(model.train(), sample)
    assert events == ["counted", "forward", "loss"]
    assert waits.found == []
    target = sample["target"].clone()
    target[:, : getattr(criterion, "ignore_prefix_size", 0)] = PAD
    assert log["mhe_tokens"] == target.ne(PAD).sum() > 0
    loss.backward()
    assert torch.isfinite(loss)


@every_kind
def test_padding_alone_trains_nothing_and_every_parameter_of_the_head_has_a_gradient(made: Made) -> None:
    model, criterion, sample = made()
    sample["target"] = torch.full_like(sample["target"], PAD)
    sample["ntokens"] = 0
    loss, _, log = criterion(model.train(), sample)
    loss.backward()
    assert float(loss.detach()) == 0 == int(log["mhe_tokens"])
    for parameter in model.head_side.head.parameters():
        assert parameter.grad is not None and not parameter.grad.any()
