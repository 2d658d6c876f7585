"""fairseq's task that fine-tunes an mBART reads its settings."""

from __future__ import annotations

from argparse import Namespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

import mhe_fairseq  # noqa: F401  (installs the repair)
from mhe_fairseq.fairseq_fixes import pretrained_bart


def task() -> TranslationFromPretrainedBARTTask:
    args = Namespace(langs="aa,bb", source_lang="aa", target_lang="bb", data="none")
    return TranslationFromPretrainedBARTTask(args, Dictionary(), Dictionary())


def test_settings_are_there() -> None:
    made = task()
    assert made.args is made.cfg
    data = made.build_dataset_for_inference([torch.tensor([9, 2])], [2])
    assert data[0]["source"].tolist() == [9, 2, made.source_dictionary.index("[aa]")]


def test_a_task_that_has_them_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    mended = object()
    monkeypatch.setattr(TranslationFromPretrainedBARTTask, "args", mended)
    pretrained_bart.install()
    assert task().args is mended
