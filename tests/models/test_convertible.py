"""A model with a softmax taken apart, to be converted."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

import mhe_fairseq  # noqa: F401  (registers the architectures)
from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.convertible import OutputLayer, as_saved, fitted_layer, kind_of, output_layer
from mhe_fairseq.models.families import LANGUAGE_MODEL, ROBERTA, TRANSFORMER
from mhe_fairseq.models.roberta import BIAS_WIDTH, with_one


def config(arch: str, **options: Any) -> Any:
    """Of a checkpoint."""
    model = argparse.Namespace(_name=arch, arch=arch, **options)
    return OmegaConf.create({"model": model}, flags={"allow_objects": True})


@pytest.mark.parametrize(
    ("arch", "family", "ours"),
    [
        ("transformer", TRANSFORMER, "mhe_transformer"),
        ("transformer_wmt_en_de", TRANSFORMER, "mhe_transformer_wmt_en_de"),
        ("transformer_vaswani_wmt_en_de_big", TRANSFORMER, "mhe_transformer_vaswani_wmt_en_de_big"),
        ("transformer_lm_gpt", LANGUAGE_MODEL, "mhe_transformer_lm_gpt"),
        ("transformer_lm", LANGUAGE_MODEL, "mhe_transformer_lm"),
        ("roberta_large", ROBERTA, "mhe_roberta_large"),
    ],
)
def test_every_stock_architecture_has_one_of_ours(arch: str, family: object, ours: str) -> None:
    kind = kind_of(config(arch), "it", "cascade")
    assert (kind.family, kind.arch, kind.ours, kind.head) == (family, arch, ours, None)


@pytest.mark.parametrize(
    ("arch", "options", "sentence"),
    [
        ("lstm", {}, "it is of --arch lstm; convert is for transformer, transformer_lm, roberta and bart"),
        ("transformer_align", {}, "it is of --arch transformer_align; convert is for"),
        ("mhe_transformer", {"mhe_head": "cascade"}, "it has a cascade head already"),
        (
            "mhe_roberta",
            {"mhe_head": "product"},
            "it has a product head, and a cascade is made of a softmax; convert it",
        ),
        (
            "transformer_lm_wiki103",
            {"adaptive_softmax_cutoff": "20000,60000"},
            "it was trained with --adaptive-softmax-cutoff 20000,60000",
        ),
    ],
)
def test_what_is_not_converted(arch: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(MHEError, match=sentence):
        kind_of(config(arch, **options), "it", "cascade")


def transformer_weights(tied: bool) -> dict[str, Tensor]:
    table = torch.randn(6, 4)
    return {
        "decoder.embed_tokens.weight": table,
        "decoder.output_projection.weight": table if tied else torch.randn(6, 4),
        "decoder.layers.0.fc1.weight": torch.randn(3, 4),
    }


@pytest.mark.parametrize("tied", [True, False])
def test_the_output_layer_is_taken_off(tied: bool) -> None:
    weights = transformer_weights(tied)
    layer = output_layer(kind_of(config("transformer"), "it", "cascade"), weights, "it")
    assert layer.tied is tied and not layer.has_bias
    assert layer.table is weights["decoder.output_projection.weight"]
    assert sorted(layer.body) == ["decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"]


def test_two_tables_of_the_same_numbers_are_not_tied() -> None:
    weights = transformer_weights(tied=True)
    weights["decoder.output_projection.weight"] = weights["decoder.embed_tokens.weight"].clone()
    assert not output_layer(kind_of(config("transformer"), "it", "cascade"), weights, "it").tied


def test_what_the_encoder_reads_stays_a_map_of_what_the_decoder_reads() -> None:
    """Where the two go on to share a table; else it becomes the encoder's own."""
    rows, change, marks = torch.randn(6, 4), torch.randn(4, 4), torch.randn(2, 4)
    weights = {
        # As a mean of checkpoints has them: the same numbers twice.
        "encoder.embed_tokens.weight": rows.clone(),
        "encoder.embed_tokens.map": change,
        "decoder.embed_tokens.weight": rows,
        "decoder.head.codebook_slots": torch.arange(6),
        "decoder.head.codebook_lengths": torch.tensor([2, 3]),
    }
    softmax = kind_of(config("mhe_transformer", mhe_head="sampling"), "it", "cascade")
    layer = output_layer(softmax, weights, "it")
    assert layer.tied and layer.table is rows and layer.body["encoder.embed_tokens.map"] is change
    weights |= {
        "decoder.head.group.weight": marks,
        "decoder.head.group.bias": torch.randn(2),
        "decoder.head.rows_in_input": torch.tensor(1),
    }
    cascade = kind_of(config("mhe_transformer", mhe_head="cascade"), "it", "softmax")
    layer = fitted_layer(cascade, weights, torch.randn(6, 4), has_bias=False)
    assert sorted(layer.body) == ["decoder.embed_tokens.weight", "encoder.embed_tokens.weight"]
    read = rows + marks[torch.arange(6) // 3]
    torch.testing.assert_close(layer.body["decoder.embed_tokens.weight"], read)
    torch.testing.assert_close(layer.body["encoder.embed_tokens.weight"], read + read @ change)


def test_a_model_without_a_table_is_refused() -> None:
    with pytest.raises(MHEError, match="it has no table of V x d at decoder.output_projection.weight"):
        output_layer(kind_of(config("transformer"), "it", "cascade"), {}, "it")


@pytest.mark.parametrize("is_zero", [True, False])
def test_a_bias_becomes_a_number_of_each_row(is_zero: bool) -> None:
    table, bias = torch.randn(6, 4), torch.zeros(6) if is_zero else torch.randn(6)
    weights = {
        "encoder.sentence_encoder.embed_tokens.weight": table,
        "encoder.lm_head.weight": table,
        "encoder.lm_head.bias": bias,
        "encoder.lm_head.dense.weight": torch.randn(4, 4),
    }
    layer = output_layer(kind_of(config("roberta"), "it", "softmax"), weights, "it")
    assert layer.has_bias is not is_zero and layer.tied is is_zero
    features = torch.randn(5, 4)
    read = with_one(features) if layer.has_bias else features
    torch.testing.assert_close(read @ layer.table.T, features @ table.T + bias)
    assert layer.table.shape == (6, 4 if is_zero else 4 + BIAS_WIDTH)
    assert sorted(layer.body) == [
        "encoder.lm_head.dense.weight",
        "encoder.sentence_encoder.embed_tokens.weight",
    ]


def test_weights_are_saved_as_they_were() -> None:
    shared = torch.randn(6, 4)
    body = {"encoder.embed_tokens.weight": shared, "decoder.embed_tokens.weight": shared, "x": torch.ones(2)}
    saved = {**{name: each.half() for name, each in body.items()}, "x": torch.ones(2)}
    layer = as_saved(OutputLayer(body, shared, has_bias=False, tied=True), saved)
    assert layer.body["x"].dtype == torch.float32
    assert layer.table.dtype == torch.float16
    assert layer.body["encoder.embed_tokens.weight"] is layer.body["decoder.embed_tokens.weight"]
