"""A trained model with a V x d output layer, as a checkpoint of fairseq's own transformer, transformer_lm,
roberta or bart.

What comes out is what fairseq would have written, key by key, but for the optimizer's state. fairseq reads it
without this plugin, so without its allow-list: unless a Namespace is asked for, it holds nothing but tensors,
numbers, strings and plain containers (``stock_options``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import DEFAULT_MIN_PARAMS_TO_WRAP
from omegaconf import OmegaConf
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state
from mhe_fairseq.models.families import DICTIONARY, FAMILIES, ROBERTA, Family, Kind
from mhe_fairseq.models.roberta import BIAS_WIDTH
from mhe_fairseq.models.shared_tables import same
from mhe_fairseq.models.source_embedding import TABLE, apart
from mhe_fairseq.models.stock_options import PREFIX, as_dict, stock_options
from mhe_fairseq.models.stock_training import extra_state, history

#: The heads whose probabilities, outside of training, are the softmax of one V x d projection.
EXPORTABLE = ("softmax", "sampling")

#: What can be done with another head.
INSTEAD = (
    "fit a softmax to it first (mhe convert --head softmax), or serve this model with its own search, "
    "through fairseq's hub"
)


@dataclass(frozen=True)
class StockCheckpoint:
    """A checkpoint for fairseq without the plugin, and what there is to say about it.

    Attributes:
        state: what to save.
        arch: its architecture, one of fairseq's.
        head: which head it had; None for a classifier.
        vocab_size, dim: V and d of the output projection.
        dtype: of the output projection.
        tied: the projection is the embedding of the tokens it predicts.
        trained: the output layer is that of the checkpoint; else only the body under it is.
        kind: what it is for; a classifier was made of a masked language model.
    """

    state: dict[str, Any]
    arch: str
    head: str | None
    vocab_size: int
    dim: int
    dtype: torch.dtype
    tied: bool
    trained: bool
    kind: Kind

    @property
    def masked(self) -> bool:
        """A masked language model, or a classifier made of one."""
        return self.kind == ROBERTA.kind


def to_stock(
    state: Mapping[str, Any], name: str, body: bool = False, namespace: bool = False
) -> StockCheckpoint:
    """Convert a checkpoint. The optimizer's state, which is most of a file, is left out.

    Args:
        state: as ``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` returns it; not changed, tensors shared.
        name: what to call it in an error.
        body: of a masked language model, a bart or a model with tied embeddings export what is under the
            output layer, whatever the head; the output layer is fairseq's, tied to the embeddings and not
            trained.
        namespace: of a transformer or a roberta write the options as fairseq does, an ``argparse.Namespace``,
            which torch refuses under ``weights_only=True``.

    Raises:
        MHEError: not of one of our models, or of a head that no softmax of V x d equals.
    """
    cfg, weights = state.get("cfg"), state.get("model")
    # to_container leaves a Namespace, which fairseq keeps in a config, as it is.
    options = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
    if not isinstance(options, dict) or not isinstance(weights, Mapping):
        raise MHEError(f"{name} is not one of a fairseq model: it has no options or no weights")
    model = as_dict(options.get("model"))
    arch = str(model.get("_name") or model.get("arch"))
    family, stock_arch = _family(arch, name)
    head = _head(family, weights, model, name, body)
    trained = head in EXPORTABLE
    stock_weights, tied = _stock_weights(family, weights, name, trained)
    projection = stock_weights[family.projection]
    if family is ROBERTA and not tied:
        # A bias keeps a head from being tied, and fairseq's roberta has one with and without.
        options = {**options, "model": {**model, "untie_weights_roberta": True}}
    if model.get("share_all_embeddings") and not same(stock_weights[TABLE], stock_weights[family.embedding]):
        # What the encoder reads was a map of what the decoder reads. fairseq's has a table of its own.
        sides = {"share_all_embeddings": False, "share_decoder_input_output_embed": tied}
        # Written by fairseq where tables are apart.
        wrapped = {"min_params_to_wrap": DEFAULT_MIN_PARAMS_TO_WRAP}
        options = {**options, "model": {**wrapped, **model, **sides}}
    stock_cfg = stock_options(options, arch, stock_arch, namespace)
    stock = {
        "args": None,  # of older fairseqs; the loader made a cfg of them
        "cfg": stock_cfg,
        "model": stock_weights,
        "criterion": None,
        "optimizer_history": history(state),
        "task_state": {},
        "extra_state": extra_state(state),
    }
    vocab_size, dim = projection.shape
    named = str(as_dict(stock_cfg["model"])["_name"])
    return StockCheckpoint(stock, named, head, vocab_size, dim, projection.dtype, tied, trained, family.kind)


def _family(arch: str, name: str) -> tuple[Family, str]:
    """What ``arch`` is of, and fairseq's architecture with its settings."""
    stock = arch.removeprefix(PREFIX)
    for family in FAMILIES:
        if ARCH_MODEL_REGISTRY.get(arch) is family.ours and stock in ARCH_CONFIG_REGISTRY:
            return family, stock
    whose = "fairseq's own " if stock == arch and arch in ARCH_MODEL_REGISTRY else ""
    raise MHEError(
        f"{name} is of {whose}--arch {arch}; export is for mhe_transformer, mhe_transformer_lm, "
        "mhe_roberta and mhe_bart and their architectures"
    )


def _head(
    family: Family, weights: Mapping[str, Tensor], model: dict[str, Any], name: str, body: bool
) -> str | None:
    """Which head the checkpoint has, None for a classifier, which has none.

    Raises:
        MHEError: it cannot be exported.
    """
    has_head = any(key.startswith(family.head) for key in weights)
    # The flags of a classifier may name a head that was not built.
    head = str(model.get("mhe_head")) if has_head or not family.classifies else None
    if head in EXPORTABLE or (body and (family.classifies or _ties(family, weights, model))):
        return head
    what = "no output head" if head is None else f"a {head} head, and no softmax of V x d equals it"
    if family.classifies:
        otherwise = "; --body exports what is under the head, with an output layer that is not trained"
    elif body:
        otherwise = (
            "; --body is for models that are fine-tuned to classify, or whose head is tied to the embeddings"
        )
    else:
        finish = "; or train on with a softmax what --body writes" if _ties(family, weights, model) else ""
        otherwise = f"; {INSTEAD}{finish}"
    raise MHEError(f"{name} has {what}; heads that can be exported are {' and '.join(EXPORTABLE)}{otherwise}")


def _ties(family: Family, weights: Mapping[str, Tensor], model: dict[str, Any]) -> bool:
    """The head's tokens have the embeddings for rows, so these are near those of a softmax."""
    flags = ("share_all_embeddings", "share_decoder_input_output_embed")
    own = any(key.startswith(family.head) and key.endswith(".table") for key in weights)
    return any(map(model.get, flags)) and not own


def _stock_weights(
    family: Family, weights: Mapping[str, Tensor], name: str, trained: bool
) -> tuple[OrderedDict[str, Tensor], bool]:
    """The state dict of fairseq's model, in its order, and whether its projection is tied.

    A tied projection is named too, as fairseq does: the same tensor, stored once.
    """
    own = [key for key in weights if key.startswith(family.head)]
    unknown = sorted(key for key in own if trained and key not in (family.table, *family.ignored))
    is_tied = family.table not in weights or not trained
    table = weights.get(family.embedding if is_tied else family.table)
    if unknown or table is None or table.dim() != 2:
        seen = ", ".join(unknown) if unknown else f"neither {family.table} nor {family.embedding}"
        raise MHEError(f"{name} has {seen}, so its output layer is not a table of V x d")
    embedding = table
    if not trained:
        embedding = table = with_rows_of_state(table, dict(weights), family.head)
    bias = table.new_zeros(len(table))
    dim = weights[family.embedding].size(1) if family.embedding in weights else table.size(1)
    if family is ROBERTA and table.size(1) == dim + BIAS_WIDTH:
        table, bias = table[:, :dim].clone(), table[:, dim].clone()
    layer = {family.projection: table}
    if family is ROBERTA:
        layer |= _masked_layer(table, bias, weights)
    side = family.head.partition(".")[0] + "."
    stock: OrderedDict[str, Tensor] = OrderedDict()
    for key, value in weights.items():
        if key.startswith(family.head) or key in layer or not key.startswith((side, "encoder.")):
            # Here the output layer lies, or is over: a classifier comes after it.
            stock.update(layer)
        if key not in own and key not in layer and key != DICTIONARY:
            is_shared = is_tied and family.embedding in weights and same(value, weights[family.embedding])
            stock[key] = embedding if is_shared else value
    stock.update(layer)
    stock = OrderedDict(apart(stock))
    vars(stock).update(_metadata(family, weights))
    return stock, is_tied


def _metadata(family: Family, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """What torch writes beside a state dict, the version of each module."""
    theirs = getattr(weights, "_metadata", None)
    if theirs is None:
        return {}
    head, projection = family.head.removesuffix("."), family.projection.removesuffix(".weight")
    found: OrderedDict[str, Any] = OrderedDict()
    for module, version in theirs.items():
        if module != head and not module.startswith(family.head):
            found[module] = version
        elif module == head:
            found.setdefault(projection, {"version": 1})
    return {"_metadata": found}


def _masked_layer(table: Tensor, bias: Tensor, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What fairseq's roberta has behind its encoder beside the table, in its order."""
    untrained = _untrained_transform(table)
    transform = {key: weights.get(key, start) for key, start in untrained.items()}
    return {"encoder.lm_head.bias": bias, **transform}


def _untrained_transform(table: Tensor) -> dict[str, Tensor]:
    """What fairseq's roberta has before its projection, and a classifier of ours has not, as at its start."""
    dim = table.size(1)
    start = torch.randn(dim, dim, generator=torch.Generator().manual_seed(0)) * 0.02
    return {
        "encoder.lm_head.dense.weight": start.to(table.dtype),
        "encoder.lm_head.dense.bias": table.new_zeros(dim),
        "encoder.lm_head.layer_norm.weight": table.new_ones(dim),
        "encoder.lm_head.layer_norm.bias": table.new_zeros(dim),
    }
