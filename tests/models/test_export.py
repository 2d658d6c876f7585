"""What a checkpoint becomes when it is made fairseq's own."""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.export import to_stock

V, D = 6, 4


def checkpoint(
    head: str = "sampling", tied: bool = False, arch: str = "mhe_transformer_tiny", hydra: bool = False
) -> dict[str, Any]:
    """What fairseq-train writes, with a few of its weights. fairseq-hydra-train writes a dict of the model's
    options, fairseq-train a Namespace of all there are."""
    model = {"_name": arch, "dropout": 0.2, "encoder_layers": 3, "share_all_embeddings": tied}
    model |= {"mhe_head": head, "mhe_lengths": "2,3", "mhe_fingerprint": "0123456789abcdef"}
    everything = {**model, "arch": arch, "criterion": "mhe_cross_entropy", "task": "translation", "seed": 1}
    everything |= {"user_dir": "/the/plugin", "save_dir": "/checkpoints", "adam_betas": (0.9, 0.98)}
    weights = {
        "encoder.embed_tokens.weight": torch.randn(V, D),
        "decoder.embed_tokens.weight": torch.randn(V, D),
        "decoder.layers.0.fc1.weight": torch.randn(2, D),
        "decoder.head.codebook_slots": torch.arange(V),
        "decoder.head.codebook_lengths": torch.tensor([2, 3]),
    }
    if not tied:
        weights["decoder.head.table.linear.weight"] = torch.randn(V, D)
    criterion = {"_name": "mhe_cross_entropy", "label_smoothing": 0.3, "report_accuracy": True}
    return {
        "args": None,
        "cfg": {
            "_name": None,
            "common": {"user_dir": "/the/plugin", "seed": 1},
            "task": {"_name": "translation", "data": "/data", "source_lang": "en", "target_lang": "de"},
            "model": model if hydra else argparse.Namespace(**everything),
            "criterion": {**criterion, "ignore_prefix_size": 2, "sentence_avg": True},
        },
        "model": weights,
        "criterion": None,
        "optimizer_history": [
            {
                "criterion_name": "MHECrossEntropyCriterion",
                "optimizer_name": "FairseqAdam",
                "lr_scheduler_state": {"best": 1.5},
                "num_updates": 700,
            }
        ],
        "task_state": {},
        "extra_state": {
            # --eval-bleu counts n-grams in numpy arrays.
            "metrics": {"valid": [(10, "_bleu_counts", "SumMeter", {"sum": np.array([3, 2, 1, 0])})]},
            "train_iterator": {"version": 2, "epoch": 6, "iterations_in_epoch": 0, "shuffle": True},
            "val_loss": 4.5,
            "best": 4.25,
            "previous_training_time": 3.0,
        },
        "last_optimizer_state": {"state": {0: {"exp_avg": torch.randn(V, D)}}},
    }


def loaded(state: dict[str, Any]) -> dict[str, Any]:
    """``state`` as fairseq's loader gives it: the options are a config."""
    return {**state, "cfg": OmegaConf.create(state["cfg"], flags={"allow_objects": True})}


@pytest.fixture
def without_the_plugin() -> Iterator[None]:
    """torch allows what it allows by itself."""
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize("hydra", [False, True])
def test_options_are_those_of_fairseqs_transformer(hydra: bool) -> None:
    stock = to_stock(loaded(checkpoint(hydra=hydra)), "it")
    assert stock.arch == "transformer_tiny"
    assert stock.state["args"] is None
    cfg = stock.state["cfg"]
    model = cfg.pop("model")
    assert cfg == {
        "_name": None,
        "common": {"user_dir": None, "seed": 1},
        "task": {"_name": "translation", "data": "/data", "source_lang": "en", "target_lang": "de"},
        "criterion": {
            "_name": "label_smoothed_cross_entropy",
            "label_smoothing": 0.3,
            "report_accuracy": True,
            "ignore_prefix_size": 2,
            "sentence_avg": True,
        },
    }
    # What was said, what fairseq's architecture adds, and what a reader of flat options asks for.
    expected: dict[str, Any] = {
        "dropout": 0.2,
        "encoder_layers": 3,
        "share_all_embeddings": False,
        "decoder_layers": 2,
    }
    expected |= {"_name": "transformer_tiny", "arch": "transformer_tiny", "task": "translation"}
    expected |= {"source_lang": "en", "target_lang": "de"} if hydra else {"user_dir": None, "seed": 1}
    expected |= {} if hydra else {"criterion": "label_smoothed_cross_entropy", "save_dir": "/checkpoints"}
    assert {key: model.get(key) for key in expected} == expected
    assert not [key for key in model if key.startswith("mhe_")]
    assert type(model) is OrderedDict and vars(model) == dict(model)


def test_a_namespace_where_fairseq_writes_one() -> None:
    state = checkpoint()
    plain = to_stock(loaded(state), "it").state
    same = to_stock(loaded(state), "it", namespace=True).state
    options, model = plain["cfg"].pop("model"), same["cfg"].pop("model")
    assert type(model) is argparse.Namespace and vars(model) == dict(options)
    assert plain["cfg"] == same["cfg"]


def test_options_that_only_our_criterion_or_task_has_are_left_out() -> None:
    state = checkpoint()
    state["cfg"]["criterion"]["ours"] = 1
    state["cfg"]["task"] |= {"_name": "mhe_translation", "mhe_compact": True}
    stock = to_stock(loaded(state), "it").state["cfg"]
    assert "ours" not in stock["criterion"] and "mhe_compact" not in stock["task"]
    assert stock["task"]["_name"] == "translation"


def test_a_criterion_of_fairseq_stays_as_it_is() -> None:
    state = checkpoint()
    state["cfg"]["criterion"] = {"_name": "cross_entropy", "sentence_avg": False}
    state["optimizer_history"][-1]["criterion_name"] = "CrossEntropyCriterion"
    stock = to_stock(loaded(state), "it").state
    assert stock["cfg"]["criterion"] == {"_name": "cross_entropy", "sentence_avg": False}
    assert stock["optimizer_history"][-1]["criterion_name"] == "CrossEntropyCriterion"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
def test_weights(tied: bool, dtype: torch.dtype) -> None:
    state = checkpoint(tied=tied)
    state["model"] = {
        name: each.to(dtype) if each.is_floating_point() else each for name, each in state["model"].items()
    }
    stock = to_stock(loaded(state), "it")
    assert (stock.vocab_size, stock.dim, stock.dtype, stock.tied) == (V, D, dtype, tied)
    weights = stock.state["model"]
    assert sorted(weights) == [
        "decoder.embed_tokens.weight",
        "decoder.layers.0.fc1.weight",
        "decoder.output_projection.weight",
        "encoder.embed_tokens.weight",
    ]
    table = "decoder.embed_tokens.weight" if tied else "decoder.head.table.linear.weight"
    # The same tensor: a file has it once.
    assert weights["decoder.output_projection.weight"] is state["model"][table]
    assert all(weights[name].equal(state["model"][name]) for name in weights if name in state["model"])
    assert {each.dtype for each in weights.values()} == {dtype}


def test_what_is_under_a_cascade_of_a_mean_of_checkpoints() -> None:
    """Encoder and decoder have one embedding; in a mean they have a copy each, with the same numbers."""
    state = checkpoint("cascade", tied=True)
    rows = torch.randn(V, D)
    marks = torch.randn(2, D)
    state["model"] |= {
        "encoder.embed_tokens.weight": rows.clone(),
        "decoder.embed_tokens.weight": rows,
        "decoder.head.group.weight": marks,
        "decoder.head.group.bias": torch.randn(2),
        "decoder.head.rows_in_input": torch.tensor(1),
    }
    read = rows + marks[torch.arange(V) // 3]
    both = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    for change in (None, torch.randn(D, D)):
        if change is not None:
            state["model"]["encoder.embed_tokens.map"] = change
        made = to_stock(loaded(state), "it", body=True).state
        wanted = (read if change is None else read + read @ change, read)
        for name, table in zip(both, wanted, strict=True):
            torch.testing.assert_close(made["model"][name], table)
        model = made["cfg"]["model"]
        assert model["share_all_embeddings"] == (change is None)
        assert model.get("share_decoder_input_output_embed") or change is None


def test_the_rest_is_what_fairseq_needs() -> None:
    state = checkpoint()
    before = copy.deepcopy(state["cfg"])
    stock = to_stock(loaded(state), "it").state
    assert "last_optimizer_state" not in stock
    assert stock["optimizer_history"] == [
        {
            "criterion_name": "LabelSmoothedCrossEntropyCriterion",
            "optimizer_name": "FairseqAdam",
            "lr_scheduler_state": {"best": 1.5},
            "num_updates": 700,
        }
    ]
    # Without the n-gram counts, which torch refuses.
    assert stock["extra_state"] == {**state["extra_state"], "metrics": {"valid": []}}
    assert state["cfg"] == before


@pytest.mark.parametrize("hydra", [False, True])
def test_torch_loads_it_without_the_plugins_allow_list(
    hydra: bool, tmp_path: Path, without_the_plugin: None
) -> None:
    state = checkpoint(hydra=hydra)
    torch.save(state, tmp_path / "ours.pt")
    with pytest.raises(Exception, match="Unsupported global"):
        torch.load(tmp_path / "ours.pt", weights_only=True)
    torch.save(to_stock(loaded(state), "it").state, tmp_path / "stock.pt")
    read = torch.load(tmp_path / "stock.pt", weights_only=True)
    assert read["cfg"]["model"]["_name"] == "transformer_tiny"


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        (checkpoint("product"), "it has a product head, and no softmax of V x d equals it"),
        (
            checkpoint("cascade"),
            "it has a cascade head, .* can be exported are softmax and sampling; fit a softmax",
        ),
        (
            checkpoint(arch="transformer_tiny"),
            "it is of fairseq's own --arch transformer_tiny; export is for",
        ),
        (
            checkpoint(arch="mhe_nothing"),
            "it is of --arch mhe_nothing; export is for mhe_transformer, mhe_transformer_lm, mhe_roberta "
            "and mhe_bart",
        ),
        ({**checkpoint(), "cfg": None}, "it is not one of a fairseq model: it has no options or no weights"),
        ({**checkpoint(), "model": None}, "it is not one of a fairseq model"),
        ({**checkpoint(), "model": {}}, "it has neither decoder.head.table.linear.weight nor decoder.embed"),
    ],
)
def test_what_cannot_be_exported_is_refused(state: dict[str, Any], sentence: str) -> None:
    state = state if state["cfg"] is None else loaded(state)
    with pytest.raises(MHEError, match=sentence):
        to_stock(state, "it")


def test_an_output_layer_with_more_than_a_table_is_refused() -> None:
    state = checkpoint()
    state["model"]["decoder.head.bias"] = torch.zeros(V)
    with pytest.raises(MHEError, match="it has decoder.head.bias, so its output layer is not a table of V x"):
        to_stock(loaded(state), "it")
