"""``--task mhe_language_modeling`` beside ``--task language_modeling``."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import MonolingualDataset
from fairseq.sequence_scorer import SequenceScorer
from fairseq.tasks.language_modeling import LanguageModelingTask

from mhe_fairseq.search import CompactGenerator
from mhe_fairseq.tasks import MHELanguageModelingTask
from mhe_fairseq.tasks.mhe_language_modeling import MHELanguageModelingConfig
from tests.commands import ALL_SENTENCES, PLUGIN
from tests.helpers import TOY_SIZES
from tests.language_model import CPU, LM
from tests.search.toys import Toy, dictionary
from tests.tasks.test_commands import check_same, run_all

VOCAB = 60


def task_of(kind: Any = MHELanguageModelingTask) -> Any:
    return kind(MHELanguageModelingConfig(train_subset="train"), dictionary(VOCAB))


def test_which_generator() -> None:
    task, models = task_of(), [Toy().build()]
    generator = task.build_generator(models, Namespace(beam=2))
    assert type(generator) is CompactGenerator and generator.why_wide() is None
    assert isinstance(task.build_generator(models, Namespace(score_reference=True)), SequenceScorer)
    assert task.build_generator(models, Namespace(sampling=True)).why_wide() == "Sampling"


@pytest.mark.parametrize("count", [1, 7, 13])
def test_no_sentence_is_left_out_but_in_training(count: int) -> None:
    words = dictionary(VOCAB)
    texts = [(torch.tensor([4, 5, 2]), torch.tensor([5, 2]), None)] * count
    data = MonolingualDataset(
        texts, [3] * count, words, words,
        add_eos_for_other_targets=True, shuffle=False, targets=["future"],
    )  # fmt: skip
    task, stock = task_of(), task_of(LanguageModelingTask)
    task.datasets["train"] = stock.datasets["train"] = data

    def seen(of: Any, **options: Any) -> int:
        batches = of.get_batch_iterator(
            dataset=data, max_sentences=8, required_batch_size_multiple=8, disable_iterator_cache=True,
            **options,
        )  # fmt: skip
        return sum(len(batch) for batch in batches.frozen_batches)

    assert seen(task) == count
    if count > 8:
        assert seen(task, epoch=1) == seen(stock, epoch=1) == 8
    task.datasets = {"valid": data}
    assert seen(task, epoch=1) == count


@pytest.mark.slow
def test_the_same_lines_come_out(language_models: dict[str, Path], lm_data: Path, tmp_path: Path) -> None:
    """What comes after a prefix, or after the whole sentence; a score may differ in its last digit."""
    product, cascade, sampling = (str(language_models[name]) for name in ("product", "cascade", "sampling"))
    cases = [
        ["--path", product, "--beam", "3", "--nbest", "2", "--prefix-size", "2"],
        ["--path", f"{product}:{cascade}", "--beam", "2", "--batch-size", "7"],
        ["--path", cascade, "--beam", "4", "--prefix-size", "1", "--lenpen", "0.6"],
        ["--path", sampling, "--beam", "2", "--prefix-size", "1"],
        ["--path", cascade, "--score-reference"],
    ]
    text = "\n".join((lm_data.parent / "text" / "test").read_text().splitlines()[:3]) + "\n"
    lines = []
    for task in ("mhe_language_modeling", "language_modeling"):
        common = [str(lm_data), *PLUGIN, *LM, *CPU, "--task", task, "--max-len-b", "15"]
        # --task mhe_language_modeling loses no sentence without being told.
        told = ALL_SENTENCES if task == "language_modeling" else []
        lines += [["generate", "", *common, *told, *case] for case in cases]
        lines.append(["interactive", text, *common, "--path", cascade, "--beam", "3"])
    outputs, said = run_all(lines, tmp_path)
    ours, stock = outputs[: len(cases) + 1], outputs[len(cases) + 1 :]
    for case, mine, theirs in zip([*cases, ["interactive"]], ours, stock, strict=True):
        check_same(mine, theirs, case)
    counts = [sum(line.startswith("H-") for line in output) for output in ours]
    assert counts == [2 * TOY_SIZES["test"], *[TOY_SIZES["test"]] * 4, 3]
    # What was given is what they begin with.
    found = [line.split("\t")[2] for line in ours[-1] if line.startswith("H-")]
    assert all(line.startswith(given) for line, given in zip(found, text.splitlines(), strict=True))
    assert said.count("mhe: compact search") == 5 and "mhe: V-wide" not in said
