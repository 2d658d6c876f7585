"""``mhe_roberta``: its settings, what it is built of, its loss, which checkpoints it takes."""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.criterions.masked_lm import MaskedLmConfig, MaskedLmLoss
from fairseq.data import Dictionary
from fairseq.models import build_model
from fairseq.models.roberta import RobertaModel
from fairseq.tasks.masked_lm import MaskedLMConfig, MaskedLMTask
from fairseq.tasks.sentence_prediction import SentencePredictionConfig, SentencePredictionTask
from omegaconf import OmegaConf
from torch import Tensor

from mhe_fairseq.criterions import MHEMaskedLMCriterion
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.roberta import MHERobertaModel
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

SMALL = {
    "encoder_layers": 2, "encoder_embed_dim": DIM, "encoder_ffn_embed_dim": DIM, "encoder_attention_heads": 2,
    "dropout": 0.0, "attention_dropout": 0.0, "tokens_per_sample": 12,
}  # fmt: skip

HEADS: dict[str, dict[str, Any]] = {
    **heads({"untie_weights_roberta": True}),
    "sampling own": {"mhe_head": "sampling", "mhe_sampling": "own", "mhe_lengths": "8,8"},
}


def words(count: int = VOCAB, prefix: str = "w") -> Dictionary:
    """For ``count`` symbols with the ``<mask>`` that a task adds."""
    return plain_words(count - 1, prefix=prefix)


def masked_task(dictionary: Dictionary | None = None) -> MaskedLMTask:
    return MaskedLMTask(MaskedLMConfig(data="none", tokens_per_sample=12), dictionary or words())


def classifying_task(dictionary: Dictionary | None = None) -> SentencePredictionTask:
    config = SentencePredictionConfig(
        data="none", num_classes=3, max_positions=12, classification_head_name="topic"
    )
    dictionary = dictionary or words()
    dictionary.add_symbol("<mask>")
    return SentencePredictionTask(config, dictionary, words(8))


def build(task: Any = None, arch: str = "mhe_roberta_base", config: bool = False, **options: Any) -> Any:
    """As fairseq-train does; ``config``: as fairseq-hydra-train does."""
    settings = {**SMALL, **options, "arch": arch, "_name": arch}
    args = OmegaConf.create(settings) if config else Namespace(**settings)
    torch.manual_seed(0)
    task = task or masked_task()
    model = task.build_model(args) if hasattr(task, "build_model") else build_model(args, task)
    model.saved = args
    return model


def batch(rows: int = 3, length: int = 7) -> tuple[Tensor, Tensor]:
    """Input with padding, targets where something is masked; the first row has none."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(4, VOCAB - 1, (rows, length), generator=generator)
    target = tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < 0.5, PAD)
    target[0] = PAD
    tokens[-1, -2:] = target[-1, -2:] = PAD
    return tokens.masked_fill(target.ne(PAD), VOCAB - 1), target


# ---- settings


def test_architectures_and_flags_are_fairseqs() -> None:
    check_architectures("roberta", {"roberta", "roberta_base", "roberta_large", "roberta_prenorm", "xlm"})
    check_flags(MHERobertaModel, RobertaModel)


@pytest.mark.parametrize("config", [False, True])
def test_what_a_checkpoint_keeps_restores_it_without_the_codebook_file(config: bool) -> None:
    model = build(config=config, mhe_head="cascade", mhe_lengths="5,10")
    saved = OmegaConf.to_container(model.saved) if config else vars(model.saved)
    assert (saved["mhe_head"], saved["mhe_lengths"], saved["max_positions"]) == ("cascade", "5,10", 12)
    assert saved["mhe_fingerprint"] == model.encoder.head.codebook.fingerprint
    assert "mhe_options" not in saved
    again = build(config=config, **{**saved, "mhe_codebook": "/gone"})
    assert again.encoder.head.adopt_codebook
    again.load_state_dict(model.state_dict())


# ---- what is built


@pytest.mark.parametrize("arch", ["roberta_base", "roberta_prenorm"])
@pytest.mark.parametrize("untied", [False, True])
def test_a_softmax_head_is_fairseqs_model(arch: str, untied: bool) -> None:
    """But for the projection's bias, which is zero at the start."""
    mine = build(arch=f"mhe_{arch}", mhe_head="softmax", untie_weights_roberta=untied).eval()
    stock = build(arch=arch, untie_weights_roberta=untied).eval()
    weights = {name: value for name, value in mine.state_dict().items() if "encoder.head." not in name}
    del weights["encoder.mhe_dictionary"]
    weights["encoder.lm_head.weight"] = mine.encoder.head.table.weight
    weights["encoder.lm_head.bias"] = torch.zeros(VOCAB)
    assert {name: value.shape for name, value in weights.items()} == {
        name: value.shape for name, value in stock.state_dict().items()
    }
    stock.load_state_dict(weights)
    tokens, target = batch()
    for masked in (None, target.ne(PAD)):
        a, b = (model(tokens, masked_tokens=masked)[0] for model in (mine, stock))
        assert a.shape == b.shape
        torch.testing.assert_close(a, stock.get_normalized_probs((b, None), log_probs=True))
        torch.testing.assert_close(mine.get_normalized_probs((a, None), log_probs=False), b.softmax(-1))


@pytest.mark.parametrize("name", INITIALISED)
def test_a_head_keeps_its_own_initialisation(name: str) -> None:
    """fairseq's, of std 0.02, would reach some of its tables only."""
    encoder = build(**HEADS[name]).encoder
    check_initialisation(encoder.head, [encoder.sentence_encoder.embed_tokens, encoder.lm_head.dense])


@pytest.mark.parametrize("name", HEADS)
def test_what_is_tied(name: str) -> None:
    model = build(**HEADS[name])
    rows = [
        p for n, p in model.named_parameters() if n.startswith("encoder.head.") and p.numel() >= VOCAB * DIM
    ]
    has_own = "untied" in name or "batch" in name
    assert bool(rows) == has_own
    saved = set(model.state_dict())
    build(**HEADS[name]).load_state_dict(model.state_dict())
    assert ("encoder.head.table.linear.weight" in saved) == (has_own and "cascade" not in name)


@pytest.mark.parametrize("name", HEADS)
def test_the_tied_table_has_fairseqs_name(name: str) -> None:
    model = build(**HEADS[name])
    if "untied" in name or name in ("product", "mixture", "bottleneck", "sampling batch"):
        with pytest.raises(AttributeError):
            _ = model.encoder.lm_head.weight
    else:
        assert model.encoder.lm_head.weight is model.encoder.sentence_encoder.embed_tokens.weight
    assert "encoder.lm_head.weight" not in model.state_dict()


def test_nothing_is_built_behind_the_encoder_of_a_classifier() -> None:
    model = build(classifying_task(), mhe_head="cascade")
    stock = build(classifying_task(), arch="roberta_base")
    mine = {name: value.shape for name, value in model.named_parameters()}
    theirs = {name: p.shape for name, p in stock.named_parameters() if "lm_head" not in name}
    assert mine == theirs
    tokens, _ = batch()
    logits, _ = model(tokens, features_only=True, classification_head_name="topic")
    logits.sum().backward()
    assert logits.shape == (3, 3)
    assert all(p.grad is not None for p in model.parameters())
    with pytest.raises(MHEError, match="has no output layer for masked tokens"):
        model.eval()(tokens)


# ---- the loss


@pytest.mark.parametrize("name", HEADS)
def test_loss_is_that_of_the_exact_distribution(name: str) -> None:
    model = build(**HEADS[name]).eval()
    tokens, target = batch()
    exact, _ = model(tokens)
    torch.testing.assert_close(exact.exp().sum(-1), torch.ones(target.shape))
    loss = model(tokens, target=target, smoothing=True, accuracy=True)
    masked = target.ne(PAD)
    expected = -exact.gather(-1, target.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss.nll, expected.masked_fill(~masked, 0.0))
    assert loss.tokens == masked.sum()
    assert loss.stats["accuracy"] == exact.argmax(-1).eq(target)[masked].sum()
    if name in ("product", "softmax", "untied softmax"):
        torch.testing.assert_close(loss.smooth[masked], -exact.mean(-1)[masked])
    # As stock callers ask, by name and of some tokens.
    picked, _ = model(src_tokens=tokens, masked_tokens=masked)
    torch.testing.assert_close(picked, exact[masked])
    every, _ = model(src_tokens=tokens, masked_tokens=torch.tensor([True]))
    torch.testing.assert_close(every, exact.flatten(0, 1))


@pytest.mark.parametrize("masks", ["some", "none", "all"])
@pytest.mark.parametrize("name", HEADS)
def test_every_parameter_gets_a_gradient(name: str, masks: str) -> None:
    model = build(**HEADS[name]).train()
    tokens, target = batch()
    if masks != "some":
        target = torch.full_like(tokens, PAD) if masks == "none" else tokens.clamp(min=4)
    loss, size, _ = criterion(0.1)(model, sample(tokens, target))
    loss.backward()
    assert int(size) == int(target.ne(PAD).sum())
    lacking = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert lacking == []
    assert any(bool(p.grad.any()) for p in model.parameters()) == (masks != "none")


@pytest.mark.parametrize("name", ["mixture", "cascade", "sampling"])
def test_only_masked_positions_reach_the_head(name: str) -> None:
    model = build(**HEADS[name]).train()
    rows = []
    for module in (model.encoder.lm_head, model.encoder.head):
        module.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    tokens, target = batch()
    model(tokens, target=target, smoothing=True)
    count = int(target.ne(PAD).sum())
    assert rows == [count, count] and 0 < count < target.numel() / 2


def criterion(eps: float = 0.0, task: Any = None) -> MHEMaskedLMCriterion:
    return MHEMaskedLMCriterion(task or masked_task(), label_smoothing=eps)


def sample(tokens: Tensor, target: Tensor) -> dict[str, Any]:
    lengths = tokens.ne(PAD).sum(1)
    return {
        "net_input": {"src_tokens": tokens, "src_lengths": lengths, "src_id": torch.arange(len(tokens))},
        "target": target,
        "ntokens": int(lengths.sum()),
        "nsentences": len(tokens),
    }


@pytest.mark.parametrize("masks", ["some", "none"])
@pytest.mark.parametrize("name", ["softmax", "untied softmax", "product", "mixture", "cascade"])
def test_fairseqs_criterion_computes_the_same_at_a_softmaxs_cost(name: str, masks: str) -> None:
    model = build(**HEADS[name]).train()
    tokens, target = batch()
    target = target if masks == "some" else torch.full_like(target, PAD)
    stock = MaskedLmLoss(MaskedLmConfig(tpu=False), masked_task())
    results = []
    with pytest.warns(UserWarning, match="--criterion mhe_masked_lm computes the same loss") as warned:
        for each in (criterion(), stock, stock):
            model.zero_grad()
            loss, size, log = each(model, sample(tokens, target))
            loss.backward()
            # A number in ours, a tensor in fairseq's.
            numbers = [loss.detach(), torch.tensor(float(size)), log["loss"]]
            results.append([*numbers, *(p.grad.clone() for p in model.parameters())])
    assert len(warned) == 1
    for mine, theirs in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(mine, theirs.to(mine.dtype), rtol=1e-4, atol=1e-6)


def test_no_warning_where_nothing_is_wide() -> None:
    model = build(mhe_head="cascade").train()
    tokens, target = batch()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*whole vocabulary")
        model(tokens, target=target)
        model(tokens, features_only=True)
        model.eval()
        model(tokens)


def test_half_precision() -> None:
    model = build(mhe_head="cascade").to(torch.bfloat16)
    tokens, target = batch()
    loss = model(tokens, target=target).nll
    assert loss.dtype == torch.float32
    loss.sum().backward()
    assert model.encoder.mhe_dictionary.dtype == torch.long
    assert model.eval()(tokens)[0].dtype == torch.float32


# ---- checkpoints of other models


def test_a_classifier_leaves_the_head_out(caplog: pytest.LogCaptureFixture) -> None:
    trained, model = build(mhe_head="cascade"), build(classifying_task())
    state = trained.state_dict()
    with caplog.at_level(logging.INFO, logger="mhe_fairseq.models.classifying"):
        model.load_state_dict(state)
    said = [record.message for record in caplog.records if "left out" in record.message]
    assert len(said) == 1 and said[0].startswith("mhe: the checkpoint's output head (")
    for name, value in trained.encoder.sentence_encoder.state_dict().items():
        if name != "embed_tokens.weight":
            assert torch.equal(value, model.encoder.sentence_encoder.state_dict()[name])
    tokens = torch.arange(len(trained.encoder.dictionary))
    before, after = (each.encoder.sentence_encoder.embed_tokens for each in (trained, model))
    assert torch.equal(before(tokens), after.weight), "with the rows that the head added"
    assert not torch.equal(before.weight, after.weight)
    # What it is saved as has no head, and nothing to leave out.
    caplog.clear()
    again = build(classifying_task())
    again.load_state_dict(model.state_dict())
    assert "left out" not in caplog.text
    assert torch.equal(
        again.classification_heads["topic"].out_proj.weight,
        model.classification_heads["topic"].out_proj.weight,
    )


def _state(task: Any = None, **options: Any) -> dict[str, Tensor]:
    state: dict[str, Tensor] = build(task, **options).state_dict()
    return state


@pytest.mark.parametrize("task", [masked_task, classifying_task])
@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (
            lambda: _state(masked_task(words(40))),
            "the checkpoint is for 40 tokens and the data's dictionary has 50; binarise the data with the "
            "dict.txt that the model was pretrained with",
        ),
        (
            lambda: _state(masked_task(words(prefix="x"))),
            "the checkpoint is for another dictionary (fingerprint ",
        ),
        (
            lambda: _state(arch="roberta_base"),
            "the checkpoint is of fairseq's own roberta, not of mhe_roberta or one of its architectures",
        ),
        (
            lambda: {"decoder.embed_tokens.weight": torch.zeros(50, DIM)},
            "the checkpoint is of a model of another --arch, not of mhe_roberta or one of its architectures",
        ),
        (
            lambda: _state(max_positions=20),
            "the checkpoint has 20 positions and this model 12; give --max-positions 20",
        ),
    ],
)
def test_refused(task: Any, state: Any, sentence: str) -> None:
    model = build(task())
    with pytest.raises(MHEError) as error:
        model.load_state_dict(state())
    assert str(error.value).startswith(sentence)


def test_the_fingerprint_is_the_dictionarys() -> None:
    model = build(classifying_task())
    with pytest.raises(MHEError, match="another dictionary") as error:
        model.load_state_dict(_state(masked_task(words(prefix="x"))))
    from mhe_fairseq.coding import symbols_fingerprint

    theirs, mine = (symbols_fingerprint(masked_task(words(prefix=p)).dictionary.symbols) for p in "xw")
    assert f"(fingerprint {theirs}, the data's has {mine}, both of 50 tokens)" in str(error.value)


def test_a_classifier_predicts_no_masked_tokens() -> None:
    model, state = build(), _state(classifying_task())
    with pytest.raises(MHEError, match="no output head, it was fine-tuned to classify"):
        model.load_state_dict(state)


def test_a_task_of_its_own_is_a_classifiers_too() -> None:
    class Mine(SentencePredictionTask):
        pass

    task = Mine(classifying_task().cfg, words(), words(8))
    assert build(task).encoder.lm_head is None
    assert build(SimpleNamespace(source_dictionary=words(), max_positions=lambda: 12)).encoder.lm_head
