"""What a checkpoint of ``mhe_roberta`` becomes when it is made fairseq's own."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.export import StockCheckpoint, to_stock
from tests.heads_of_models import DIM, VOCAB
from tests.models.test_export import checkpoint as translation
from tests.models.test_export import loaded as read
from tests.models.test_roberta import HEADS, batch, build, classifying_task


def checkpoint(model: Any, criterion: dict[str, Any], task: str = "masked_lm") -> dict[str, Any]:
    """What fairseq-train writes of a model."""
    everything = {**vars(model.saved), "arch": "mhe_roberta_base", "_name": "mhe_roberta_base"}
    everything |= {"criterion": criterion["_name"], "task": task, "mask_prob": 0.15, "seed": 1}
    cfg = {
        "common": {"user_dir": "/the/plugin"},
        "task": {"_name": task, "data": "/data"},
        "model": argparse.Namespace(**everything),
        "criterion": criterion,
    }
    state = translation()
    state["optimizer_history"][-1]["criterion_name"] = "MHEMaskedLMCriterion"
    return {**state, "cfg": cfg, "model": model.state_dict()}


def export(name: str, body: bool = False) -> tuple[Any, StockCheckpoint]:
    model = build(**HEADS[name]).eval()
    criterion = {"_name": "mhe_masked_lm", "label_smoothing": 0.1, "report_accuracy": True}
    return model, to_stock(read(checkpoint(model, criterion)), "it", body)


def loaded(stock: StockCheckpoint, task: Any = None) -> Any:
    """fairseq's own model, of the options and the weights that were written."""
    options = stock.state["cfg"]["model"]
    flags = {key: value for key, value in options.items() if key != "task"}
    model = build(task, **flags).eval()
    assert type(model).__name__ == "RobertaModel"
    model.load_state_dict(stock.state["model"])
    return model


@pytest.mark.parametrize("body", [False, True])
@pytest.mark.parametrize("name", ["softmax", "untied softmax", "sampling", "sampling own", "sampling batch"])
def test_a_table_is_fairseqs_projection(name: str, body: bool) -> None:
    ours, stock = export(name, body)
    tied = name in ("softmax", "sampling", "sampling own")
    assert (stock.trained, stock.tied, stock.masked) == (True, tied, True)
    assert (stock.vocab_size, stock.dim, stock.head) == (VOCAB, DIM, HEADS[name]["mhe_head"])
    theirs = loaded(stock)
    tokens, _ = batch()
    output = theirs(tokens)
    torch.testing.assert_close(theirs.get_normalized_probs(output, log_probs=True), ours(tokens)[0])
    embedding, projection = theirs.encoder.sentence_encoder.embed_tokens, theirs.encoder.lm_head
    assert (embedding.weight is projection.weight) == tied
    assert not projection.bias.any()


def test_options_are_those_of_fairseqs_roberta() -> None:
    _, stock = export("sampling")
    cfg = stock.state["cfg"]
    assert stock.arch == "roberta_base"
    assert cfg["criterion"] == {"_name": "masked_lm", "tpu": None}
    assert cfg["common"] == {"user_dir": None}
    assert stock.state["optimizer_history"][0]["criterion_name"] == "MaskedLmLoss"
    options = cfg["model"]
    assert not [key for key in options if key.startswith("mhe_")]
    # A Namespace of fairseq's has every flag of the training.
    assert (options["criterion"], options["mask_prob"], options["arch"]) == (
        "masked_lm",
        0.15,
        "roberta_base",
    )
    assert (options["_name"], options["max_positions"], options["encoder_embed_dim"]) == (
        "roberta_base",
        12,
        DIM,
    )


@pytest.mark.parametrize("name", ["mixture", "cascade", "untied cascade", "bottleneck"])
def test_a_body_under_any_head(name: str) -> None:
    with pytest.raises(MHEError, match="--body exports what is under the head"):
        export(name)
    ours, stock = export(name, body=True)
    assert (stock.trained, stock.tied) == (False, True)
    theirs = loaded(stock)
    tokens, _ = batch()
    torch.testing.assert_close(
        theirs(tokens, features_only=True)[0], ours(tokens, features_only=True)[0], rtol=0, atol=0
    )
    for part in ("dense", "layer_norm"):
        mine = getattr(ours.encoder.lm_head, part)
        assert torch.equal(mine.weight, getattr(theirs.encoder.lm_head, part).weight)
    embedded = ours.encoder.sentence_encoder.embed_tokens(torch.arange(len(theirs.encoder.lm_head.weight)))
    assert torch.equal(theirs.encoder.lm_head.weight, embedded), "with the rows that the head adds"


def test_a_classifier() -> None:
    ours = build(classifying_task(), mhe_head="sampling").eval()
    criterion = {"_name": "sentence_prediction", "classification_head_name": "topic"}
    state = checkpoint(ours, criterion, "sentence_prediction")
    with pytest.raises(MHEError, match="it has no output head; .*--body exports"):
        to_stock(read(state), "it")
    stock = to_stock(read(state), "it", body=True)
    assert stock.head is None and stock.state["cfg"]["criterion"] == criterion
    theirs, (tokens, _) = loaded(stock, classifying_task()), batch()
    kinds: dict[str, Any] = {"features_only": True, "classification_head_name": "topic"}
    torch.testing.assert_close(theirs(tokens, **kinds)[0], ours(tokens, **kinds)[0])
