"""Which generator the flags of a command become, and which sentences are in its batches."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest
import torch
from fairseq.data import LanguagePairDataset
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks.translation import TranslationTask

from mhe_fairseq.search import CompactGenerator, CompactGeneratorWithAlignment
from mhe_fairseq.tasks import MHETranslationTask
from mhe_fairseq.tasks.mhe_translation import MHETranslationConfig
from tests.search.toys import Toy, check_equal, dictionary, sentences

VOCAB = 60


def task_of(kind: Any = MHETranslationTask) -> Any:
    words = dictionary(VOCAB)
    return kind(MHETranslationConfig(train_subset="train"), words, words)


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({}, None),
        ({"beam": 4, "lenpen": 0.6, "min_len": 2, "unkpen": 3, "max_len_a": 1, "max_len_b": 9}, None),
        ({"unnormalized": True}, None),
        ({"sampling": True, "sampling_topk": 5}, "Sampling"),
        ({"diverse_beam_groups": 5}, "DiverseBeamSearch"),
        ({"diversity_rate": 0.5}, "DiverseSiblingsSearch"),
        ({"match_source_len": True}, "LengthConstrainedBeamSearch"),
        ({"constraints": "ordered"}, "LexicallyConstrainedBeamSearch"),
        ({"prefix_allowed_tokens_fn": lambda *_: [2, 9]}, "PrefixConstrainedBeamSearch"),
        ({"no_repeat_ngram_size": 3}, "--no-repeat-ngram-size"),
        ({"temperature": 0.5}, "--temperature 0.5"),
    ],
)
def test_flags(flags: dict[str, Any], reason: str | None) -> None:
    models, sample, found = [Toy(seed=2).build()], sentences(VOCAB, 2, 1), []
    for kind in (MHETranslationTask, TranslationTask):
        generator = task_of(kind).build_generator(models, Namespace(**{"max_len_b": 9, **flags}))
        if kind is MHETranslationTask:
            assert type(generator) is CompactGenerator
            assert generator.why_wide() == reason
        if "constraints" not in flags:
            torch.manual_seed(0)
            found.append(task_of(kind).inference_step(generator, models, sample))
    if found:
        check_equal(*found)


def test_alignments_and_references() -> None:
    task, models = task_of(), [Toy().build()]
    extra = {"lm_model": None, "lm_weight": 1.0}
    generator = task.build_generator(models, Namespace(print_alignment="soft"), extra_gen_cls_kwargs=extra)
    assert type(generator) is CompactGeneratorWithAlignment and generator.why_wide() is None
    assert generator.extract_alignment.__name__ == "extract_soft_alignment"
    assert extra == {"lm_model": None, "lm_weight": 1.0}
    assert isinstance(task.build_generator(models, Namespace(score_reference=True)), SequenceScorer)
    # A generator that was asked for by name is that one.
    kind = type("Mine", (CompactGenerator,), {})
    assert type(task.build_generator(models, Namespace(), seq_gen_cls=kind)) is kind


@pytest.mark.parametrize("count", [1, 7, 13])
def test_no_sentence_is_left_out_but_in_training(count: int) -> None:
    words = dictionary(VOCAB)
    texts = [torch.tensor([4 + number, 2]) for number in range(count)]
    data = LanguagePairDataset(texts, [2] * count, words, texts, [2] * count, words, shuffle=False)
    task, stock = task_of(), task_of(TranslationTask)
    task.datasets["train"] = stock.datasets["train"] = data

    def seen(of: Any, **options: Any) -> int:
        batches = of.get_batch_iterator(
            dataset=data, max_sentences=8, required_batch_size_multiple=8, disable_iterator_cache=True,
            **options,
        )  # fmt: skip
        return sum(len(batch["id"]) for batch in batches.next_epoch_itr(shuffle=False))

    assert seen(task) == count
    if count > 8:  # fairseq cannot go on without any batch
        assert seen(task, epoch=1) == seen(stock, epoch=1) == 8
    task.datasets = {"valid": data}
    assert seen(task, epoch=1) == count
