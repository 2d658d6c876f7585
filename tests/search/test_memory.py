"""Neither the search nor scoring nor validation makes a tensor of rows x V numbers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.sequence_scorer import SequenceScorer

from mhe_fairseq.criterions.mhe_cross_entropy import MHECrossEntropyCriterion
from mhe_fairseq.search import CompactGenerator
from tests.largest import LargestNewTensor
from tests.search.toys import EOS, Toy, dictionary, sentences

# Models are trained, or commands run, for nearly all of these.
pytestmark = pytest.mark.slow

VOCAB = 20000
BATCH, BEAM = 16, 2
#: Peaked, as trained models are: a head that cannot tell the tokens apart has to look at all of them.
HEADS = [Toy(head, VOCAB, peak=3.0) for head in ("product 2", "product 3", "mixture 2", "cascade 2",
         "cascade 3", "tied 2", "bottleneck 2")]  # fmt: skip
every_head = pytest.mark.parametrize("toy", HEADS, ids=[toy.head for toy in HEADS])


@every_head
@pytest.mark.parametrize("size", [1, 2])
def test_search(toy: Toy, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models = [toy.build() for _ in range(size)]
    for model in models:
        monkeypatch.setattr(model.decoder.head, "log_probs", None)
    generator = CompactGenerator(models, dictionary(VOCAB), beam_size=BEAM, max_len_b=3)
    prefix = torch.randint(4, VOCAB, (BATCH, 1), generator=torch.Generator().manual_seed(1))
    with LargestNewTensor() as largest:
        generator.generate(models, sentences(VOCAB, BATCH, 1), prefix_tokens=prefix)
    assert largest.numel < BATCH * BEAM * VOCAB / 8


def test_the_wide_search_would_be_seen() -> None:
    model = HEADS[0].build()
    generator = CompactGenerator([model], dictionary(VOCAB), beam_size=BEAM, max_len_b=3, temperature=1.1)
    with LargestNewTensor() as largest:
        generator.generate([model], sentences(VOCAB, BATCH, 1))
    assert largest.numel >= BATCH * BEAM * VOCAB


def _with_target(sample: dict[str, Any]) -> dict[str, Any]:
    target = torch.randint(4, VOCAB, (BATCH, 2), generator=torch.Generator().manual_seed(2))
    target[:, -1] = EOS
    net_input = {**sample["net_input"], "prev_output_tokens": target.roll(1, dims=1)}
    return {**sample, "net_input": net_input, "target": target, "ntokens": target.numel()}


@every_head
@pytest.mark.parametrize("size", [1, 2])
def test_scoring_references(toy: Toy, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    models, sample = [toy.build() for _ in range(size)], _with_target(sentences(VOCAB, BATCH, 1))
    for model in models:
        monkeypatch.setattr(model.decoder.head, "log_probs", None)
    with LargestNewTensor() as largest:
        SequenceScorer(dictionary(VOCAB)).generate(models, sample)
    assert largest.numel < sample["target"].numel() * VOCAB / 8


@every_head
def test_validation(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """With accuracies and the smoothing term."""
    model, sample = toy.build(), _with_target(sentences(VOCAB, BATCH, 1))
    monkeypatch.setattr(model.decoder.head, "log_probs", None)
    task = SimpleNamespace(target_dictionary=dictionary(VOCAB))
    criterion = MHECrossEntropyCriterion(task, sentence_avg=False, label_smoothing=0.1)
    with torch.no_grad(), LargestNewTensor() as largest:
        _, _, logged = criterion(model, sample)
    assert "mhe_accuracy" in logged
    assert largest.numel < sample["target"].numel() * VOCAB / 8
