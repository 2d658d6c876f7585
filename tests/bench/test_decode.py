"""What the decoding benchmark compares: one body, heads of one sharpness, translations of one length."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.bench.decode import (
    HEADS,
    DecodeSettings,
    DecodeStep,
    NoHead,
    make_batches,
    make_head,
    make_model,
    sample_features,
    sharpen,
)
from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError

VOCAB = 128


@pytest.fixture
def settings() -> DecodeSettings:
    return DecodeSettings(16, 1, sentences=5, length=4, beam=2, batch=2, seed=3, device=torch.device("cpu"))


@pytest.mark.parametrize("name", [name for name in HEADS if name != "none"])
def test_sharpened_heads_have_the_entropy_asked_for(name: str) -> None:
    torch.manual_seed(1)
    head = make_head(name, 16, Codebook((8, 16))).eval()
    features = torch.randn(50, 16)
    sharpen(head, features, entropy=2.0)
    log_probs = head.log_probs(features).detach()
    assert float(-(log_probs.exp() * log_probs).sum(dim=-1).mean()) == pytest.approx(2.0, abs=0.02)


def test_heads_take_turns_on_one_body_and_write_as_much(settings: DecodeSettings) -> None:
    task, model = make_model(VOCAB, settings)
    assert len(task.target_dictionary) == VOCAB
    features = sample_features(task, model, settings)
    assert features.shape == (10, 16)
    for name in HEADS:
        head = make_head(name, 16, Codebook((8, 16))).eval()
        step = DecodeStep(task, model, head, settings)
        step.prepare()
        assert model.decoder.head is head
        step.run()
        assert step.tokens == 5 * (4 + 1)


def test_sentences_are_the_same_every_time(settings: DecodeSettings) -> None:
    task, _ = make_model(VOCAB, settings)
    first, second = make_batches(task, settings), make_batches(task, settings)
    assert [len(batch["id"]) for batch in first] == [2, 2, 1]
    for ours, theirs in zip(first, second, strict=True):
        assert torch.equal(ours["net_input"]["src_tokens"], theirs["net_input"]["src_tokens"])
        assert ours["net_input"]["src_tokens"].shape == (len(ours["id"]), 5)


def test_no_head_is_for_search_only() -> None:
    head = NoHead(4, Codebook((8, 16)))
    found = head.candidates(torch.zeros(3, 4), 6, torch.arange(4))
    assert found.scores.shape == found.tokens.shape == (3, 6) and found.given.shape == (3, 4)
    assert int(found.tokens.min()) >= 4 and bool((found.scores.diff(dim=1) < 0).all())
    with pytest.raises(NotImplementedError):
        head.log_probs(torch.zeros(3, 4))
    with pytest.raises(MHEError, match="there is no head 'other'"):
        make_head("other", 4, Codebook((8, 16)))
