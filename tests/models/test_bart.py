"""``mhe_bart``: its settings, what it is built of, its loss, which checkpoints it takes."""

from __future__ import annotations

import logging
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, build_model
from fairseq.models.bart import BARTModel
from fairseq.sequence_generator import SequenceGenerator
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import OmegaConf
from torch import Tensor

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.criterions import MHECrossEntropyCriterion
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models import MHEBARTModel
from tests.heads_of_models import (
    DIM,
    INITIALISED,
    PAD,
    VOCAB,
    check_architectures,
    check_flags,
    check_initialisation,
    heads,
)
from tests.heads_of_models import words as plain_words

EOS = 2
SMALL = {
    "encoder_layers": 1, "encoder_embed_dim": DIM, "encoder_ffn_embed_dim": DIM, "encoder_attention_heads": 2,
    "decoder_layers": 1, "decoder_attention_heads": 2, "dropout": 0.0, "attention_dropout": 0.0,
    "max_source_positions": 12, "max_target_positions": 12, "task": "denoising",
}  # fmt: skip

UNTIED = {"share_all_embeddings": False, "share_decoder_input_output_embed": False}

HEADS = heads(UNTIED)


def words(count: int = VOCAB, mask: bool = True, extra: tuple[str, ...] = ()) -> Dictionary:
    """``count`` symbols, the last of them ``extra`` ones and the ``<mask>`` that a task adds."""
    return plain_words(count, [*extra, *(["<mask>"] if mask else [])])


def denoising(dictionary: Dictionary | None = None) -> Any:
    """As much of a task as a model is built from."""
    dictionary = dictionary or words()
    return SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)


def classifying() -> SentencePredictionTask:
    config = SentencePredictionConfig(
        data="none", num_classes=3, max_positions=12, classification_head_name="topic"
    )
    return SentencePredictionTask(config, words(), words(8))


def build(of: Any = None, /, arch: str = "mhe_bart_base", config: bool = False, **options: Any) -> Any:
    """As fairseq-train does; ``config``: as fairseq-hydra-train does."""
    settings = {**SMALL, **options, "arch": arch, "_name": arch}
    if config:
        del settings["task"]
    args = OmegaConf.create(settings) if config else Namespace(**settings)
    if config:
        ARCH_CONFIG_REGISTRY[arch](args)
    torch.manual_seed(0)
    of = of or denoising()
    model = of.build_model(args) if hasattr(of, "build_model") else build_model(args, of)
    model.saved = args
    return model


def batch(rows: int = 3, length: int = 7) -> dict[str, Any]:
    """A sample of denoising, with padding."""
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(4, VOCAB - 1, (rows, length), generator=generator)
    target[:, -1] = EOS
    target[-1, -3:] = torch.tensor([EOS, PAD, PAD])
    previous = target.roll(1, dims=1)
    previous[:, 0] = EOS
    previous[-1] = torch.tensor([EOS, *target[-1, :4].tolist(), PAD, PAD])
    source = target.clone()
    source[:, 2] = VOCAB - 1
    net_input = {"src_tokens": source, "src_lengths": None, "prev_output_tokens": previous}
    return {"net_input": net_input, "target": target, "ntokens": int(target.ne(PAD).sum())}


# ---- settings


def test_architectures_and_flags_are_fairseqs() -> None:
    check_architectures("bart", {"bart_base", "bart_large", "mbart_base", "mbart_large"})
    check_flags(MHEBARTModel, BARTModel)


@pytest.mark.parametrize("config", [False, True])
def test_what_a_checkpoint_keeps_restores_it_without_the_codebook_file(config: bool) -> None:
    model = build(config=config, mhe_head="cascade", mhe_lengths="5,10")
    saved = OmegaConf.to_container(model.saved) if config else vars(model.saved)
    assert (saved["mhe_head"], saved["mhe_lengths"]) == ("cascade", "5,10")
    assert saved["mhe_fingerprint"] == model.decoder.head.codebook.fingerprint
    assert "mhe_options" not in saved
    again = build(config=config, **{**saved, "mhe_codebook": "/gone"})
    assert again.decoder.head.adopt_codebook
    again.load_state_dict(model.state_dict())


# ---- what is built


@pytest.mark.parametrize("arch", ["bart_base", "mbart_large"])
@pytest.mark.parametrize("untied", [False, True])
def test_a_softmax_head_is_fairseqs_model(arch: str, untied: bool) -> None:
    ties = UNTIED if untied else {}
    mine = build(arch=f"mhe_{arch}", mhe_head="softmax", **ties).eval()
    stock = build(arch=arch, **ties).eval()
    weights = {name: value for name, value in mine.state_dict().items() if "decoder.head." not in name}
    weights["decoder.output_projection.weight"] = mine.decoder.head.table.weight
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in stock.state_dict().items()
    }
    stock.load_state_dict(weights)
    inputs = batch()["net_input"]
    a, b = (model.get_normalized_probs(model(**inputs), log_probs=True) for model in (mine, stock))
    torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", INITIALISED)
def test_a_head_keeps_its_own_initialisation(name: str) -> None:
    """fairseq's, of std 0.02, would reach some of its tables only."""
    model = build(**HEADS[name])
    check_initialisation(model.decoder.head, [model.encoder.embed_tokens, model.decoder.layers[0].fc1])


@pytest.mark.parametrize("name", HEADS)
def test_what_is_tied(name: str) -> None:
    model = build(**HEADS[name])
    rows = [
        p for n, p in model.named_parameters() if n.startswith("decoder.head.") and p.numel() >= VOCAB * DIM
    ]
    has_own = "untied" in name or "batch" in name
    assert bool(rows) == has_own
    assert (model.encoder.embed_tokens is model.decoder.embed_tokens) == (not has_own)
    build(**HEADS[name]).load_state_dict(model.state_dict())


def test_a_classifier_has_no_head() -> None:
    model = build(classifying(), mhe_head="cascade")
    stock = build(classifying(), arch="bart_base")
    mine = {name: value.shape for name, value in model.named_parameters()}
    theirs = {name: p.shape for name, p in stock.named_parameters()}
    assert mine == theirs  # a tied projection has no name of its own
    assert not model.has_head and not [name for name in model.state_dict() if ".head." in name]
    logits, _ = model(**batch()["net_input"], features_only=True, classification_head_name="topic")
    logits.sum().backward()
    assert logits.shape == (3, 3)
    assert all(p.grad is not None for p in model.parameters())
    features = model(**batch()["net_input"], features_only=True)
    with pytest.raises(MHEError, match="was built to classify sentences and has no output layer for tokens"):
        model.get_normalized_probs(features, log_probs=True)


# ---- the loss


def criterion(eps: float = 0.0) -> MHECrossEntropyCriterion:
    return MHECrossEntropyCriterion(denoising(), False, eps)


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_that_of_the_exact_distribution(name: str) -> None:
    model = build(**HEADS[name]).eval()
    sample = batch()
    exact = model.get_normalized_probs(model(**sample["net_input"]), log_probs=True)
    torch.testing.assert_close(exact.exp().sum(-1), torch.ones(sample["target"].shape))
    loss, size, log = criterion()(model, sample, reduce=False)
    kept = sample["target"].ne(PAD)
    expected = -exact.gather(-1, sample["target"].unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss, expected.masked_fill(~kept, 0.0))
    assert size == log["ntokens"] == log["mhe_tokens"] == int(kept.sum()) == 19
    assert log["nsentences"] == 3


@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient(name: str) -> None:
    model = build(**HEADS[name]).train()
    loss, _, _ = criterion(0.1)(model, batch())
    loss.backward()
    lacking = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []


def test_a_generator_leaves_the_model_as_it_is() -> None:
    """It is made before a training with --eval-bleu; fairseq's BART is one for searches from then on."""
    model = build(**HEADS["cascade"]).eval()
    sample = batch(rows=4)
    before, _, _ = criterion()(model, sample, reduce=False)
    generator = SequenceGenerator([model], words(), beam_size=2, max_len=12)
    found = generator.generate([model], sample)
    assert len(found) == 4
    after, _, _ = criterion()(model, sample, reduce=False)
    torch.testing.assert_close(after, before)


# ---- checkpoints


@pytest.mark.parametrize("tie", [None, "linear"])
def test_a_classifier_leaves_the_head_out(tie: str | None, caplog: pytest.LogCaptureFixture) -> None:
    """Its features are those of the model with the head, whose rows of groups are part of the embeddings."""
    flags = {**HEADS["cascade"], "mhe_tie": tie}
    whole = build(**flags).eval()
    if tie == "linear":
        torch.nn.init.normal_(whole.encoder.embed_tokens.map, std=0.3)
    model = build(classifying(), **flags).eval()
    with caplog.at_level(logging.INFO, logger="mhe_fairseq.models.classifying"):
        model.load_state_dict(dict(whole.state_dict()))
    assert "the checkpoint's output head (" in caplog.text and "is left out" in caplog.text
    inputs = batch()["net_input"]
    a, b = (each(**inputs, features_only=True)[0] for each in (whole, model))
    torch.testing.assert_close(a, b)
    caplog.clear()
    build(classifying(), **flags).load_state_dict(model.state_dict())
    assert "left out" not in caplog.text


@pytest.mark.parametrize("name", HEADS)
def test_a_dictionary_without_mask(name: str, tmp_path: Path) -> None:
    """A translation that begins with a pretraining's weights, and its codebook's file."""
    whole = words()
    slots = torch.randperm(64, generator=torch.Generator().manual_seed(3))[:VOCAB]
    lengths = (4, 4, 4) if name == "untied cascade" else (8, 8)
    book = Codebook(lengths, slots, dictionary=symbols_fingerprint(whole.symbols))
    book.save(tmp_path / "codes")
    options = {key: value for key, value in HEADS[name].items() if key != "mhe_lengths"}
    options["mhe_codebook"] = str(tmp_path / "codes")
    pretrained = build(denoising(whole), **options).eval()
    plain = words(VOCAB - 1, mask=False)
    assert plain.symbols == whole.symbols[:-1]
    model = build(denoising(plain), **{**options, "task": "translation"}).eval()
    model.load_state_dict(pretrained.state_dict())
    assert torch.equal(model.decoder.head.codebook_slots, slots[:-1])
    inputs = batch()["net_input"]
    inputs["src_tokens"] = inputs["src_tokens"].clamp(max=VOCAB - 2)
    cut, full = (each.get_normalized_probs(each(**inputs), True) for each in (model, pretrained))
    assert cut.shape[-1] == VOCAB - 1
    torch.testing.assert_close(cut.exp().sum(-1), torch.ones(cut.shape[:-1]))
    others = full[..., :-1]
    if "softmax" in name or "sampling" in name or name == "product":
        torch.testing.assert_close(cut, others.log_softmax(-1))
    if name == "bottleneck":
        # Groups are as likely as before; in that of <mask> the others share what it had.
        apart = book.digits(torch.arange(VOCAB - 1))[:, 0] != book.digits(torch.tensor(VOCAB - 1))[0]
        torch.testing.assert_close(cut[..., apart], others[..., apart])
        assert (cut[..., ~apart] > others[..., ~apart]).all()


def other_model() -> dict[str, Tensor]:
    return {"encoder.sentence_encoder.embed_tokens.weight": torch.zeros(VOCAB, DIM)}


def test_what_is_refused() -> None:
    state = build(**HEADS["softmax"]).state_dict()
    classifier = build(classifying()).state_dict()
    symbols = ("[en_XX]", "[de_DE]")
    cases: list[tuple[dict[str, Tensor], Dictionary, str]] = [
        (
            dict(state),
            words(VOCAB + 2, extra=symbols),
            "the checkpoint is for 50 tokens and the dictionary of this training has 52, with 3 symbols such "
            r"as the task adds \(\[en_XX\] \[de_DE\] <mask>\)",
        ),
        (dict(state), words(VOCAB - 2), "the checkpoint is for 50 tokens and the dictionary .* has 48"),
        (dict(state), words(VOCAB - 1), "the checkpoint is for 50 tokens and the dictionary .* has 49"),
        (other_model(), words(), "the checkpoint is of a model of another --arch, not of mhe_bart"),
        (dict(classifier), words(), "the checkpoint has no output head, it was fine-tuned to classify"),
    ]
    for weights, dictionary, sentence in cases:
        with pytest.raises(MHEError, match=sentence):
            build(denoising(dictionary), **HEADS["softmax"]).load_state_dict(weights)


def test_fairseqs_own_checkpoint_is_named() -> None:
    stock = build(arch="bart_base").state_dict()
    with pytest.raises(MHEError, match="the checkpoint has no mhe head"):
        build(**HEADS["softmax"]).load_state_dict(stock)
