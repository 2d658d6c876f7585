"""A trained model with a V x d output layer, as a checkpoint of fairseq's own transformer.

What comes out is read by fairseq without this plugin, so without its allow-list: it holds nothing but
tensors, numbers, strings and plain containers. The ``argparse.Namespace`` of fairseq's own checkpoints would
be refused by torch's ``weights_only=True``, which fairseq's commands load under.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from fairseq.criterions.label_smoothed_cross_entropy import LabelSmoothedCrossEntropyCriterionConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from fairseq.models.transformer import TransformerModel
from omegaconf import OmegaConf
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.transformer import MHETransformerModel

#: The heads whose probabilities, outside of training, are the softmax of one V x d projection.
EXPORTABLE = ("softmax", "sampling")

_PREFIX = "mhe_"
_HEAD = "decoder.head."
_EMBEDDING = "decoder.embed_tokens.weight"
_PROJECTION = "decoder.output_projection.weight"
#: Where a head's own table lies in the state dict; a tied head has none.
_TABLE = _HEAD + "table.linear.weight"
_CODEBOOK = (_HEAD + "codebook_slots", _HEAD + "codebook_lengths")

#: Same flags, same loss, over V-wide log-probabilities.
_CRITERIONS = {"mhe_cross_entropy": "label_smoothed_cross_entropy"}
_CRITERION_CLASSES = {"MHECrossEntropyCriterion": "LabelSmoothedCrossEntropyCriterion"}
#: Options that say the name of a registered thing.
_NAMES = ("_name", "arch", "criterion", "task")
#: What a hydra config may give in place of the flat ``encoder_layers``, ``quant_noise_pq``, ...
_NESTED = ("encoder", "decoder", "quant_noise")


@dataclass(frozen=True)
class StockCheckpoint:
    """A checkpoint for fairseq without the plugin, and what there is to say about it.

    Attributes:
        state: what to save.
        arch: its architecture, one of fairseq's.
        head: which head it had.
        vocab_size, dim: V and d of the output projection.
        dtype: of the output projection.
        tied: the projection is the decoder's embedding.
    """

    state: dict[str, Any]
    arch: str
    head: str
    vocab_size: int
    dim: int
    dtype: torch.dtype
    tied: bool


def to_stock(state: Mapping[str, Any], name: str) -> StockCheckpoint:
    """Convert a checkpoint. The optimizer's state, which is most of a file, is left out.

    Args:
        state: as ``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` returns it; not changed, tensors shared.
        name: what to call it in an error.

    Raises:
        MHEError: not of ``mhe_transformer``, or of a head that no softmax of V x d equals.
    """
    cfg, weights = state.get("cfg"), state.get("model")
    # to_container leaves a Namespace, which fairseq keeps in a config, as it is.
    options = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
    if not isinstance(options, dict) or not isinstance(weights, Mapping):
        raise MHEError(f"{name} is not one of a fairseq model: it has no options or no weights")
    model = _dict(options.get("model"))
    arch = str(model.get("_name") or model.get("arch"))
    stock_arch = _stock_arch(arch, name)
    head = str(model.get("mhe_head"))
    if head not in EXPORTABLE:
        raise MHEError(
            f"{name} has a {head} head, and no softmax of V x d equals it; heads that can be exported are "
            f"{' and '.join(EXPORTABLE)}"
        )
    task = str(_dict(options.get("task")).get("_name"))
    renamed = {arch: stock_arch, **_CRITERIONS, task: task.removeprefix(_PREFIX)}
    stock_options = _plain(options, renamed)
    # A Namespace has every flag of the training, most of which are no options of a model.
    known = {"_name", *_model_options(stock_arch)}
    settings = {**stock_options["model"], "_name": stock_arch}
    stock_options["model"] = {key: value for key, value in settings.items() if key in known}
    if _dict(options.get("criterion")).get("_name") in _CRITERIONS:
        theirs = {field.name for field in fields(LabelSmoothedCrossEntropyCriterionConfig)}
        criterion = stock_options["criterion"]
        stock_options["criterion"] = {key: criterion[key] for key in criterion if key in theirs}
    stock_weights, tied = _stock_weights(weights, name)
    projection = stock_weights[_PROJECTION]
    stock = {
        "args": None,  # of older fairseqs; the loader made a cfg of them
        "cfg": stock_options,
        "model": stock_weights,
        "criterion": None,
        "optimizer_history": [_history(state)],
        "task_state": {},
        "extra_state": _extra_state(state),
    }
    vocab_size, dim = projection.shape
    return StockCheckpoint(stock, stock_arch, head, vocab_size, dim, projection.dtype, tied)


def _stock_arch(arch: str, name: str) -> str:
    """fairseq's architecture with the settings of ``arch``."""
    stock = arch.removeprefix(_PREFIX)
    if ARCH_MODEL_REGISTRY.get(arch) is not MHETransformerModel or stock not in ARCH_CONFIG_REGISTRY:
        whose = "fairseq's own " if stock == arch and arch in ARCH_MODEL_REGISTRY else ""
        raise MHEError(
            f"{name} is of {whose}--arch {arch}; export is for mhe_transformer and its architectures"
        )
    return stock


def _stock_weights(weights: Mapping[str, Tensor], name: str) -> tuple[dict[str, Tensor], bool]:
    """The state dict of fairseq's model, and whether its projection is tied.

    A tied projection is named too, as fairseq does: the same tensor, stored once.
    """
    unknown = sorted(key for key in weights if key.startswith(_HEAD) and key not in (_TABLE, *_CODEBOOK))
    table = weights.get(_TABLE, weights.get(_EMBEDDING))
    if unknown or table is None or table.dim() != 2:
        seen = ", ".join(unknown) if unknown else f"neither {_TABLE} nor {_EMBEDDING}"
        raise MHEError(f"{name} has {seen}, so its output layer is not a table of V x d")
    stock = {key: value for key, value in weights.items() if not key.startswith(_HEAD)}
    return {**stock, _PROJECTION: table}, _TABLE not in weights


def _model_options(arch: str) -> set[str]:
    """The names of a transformer's options: its flags, and what its architecture sets beside them."""
    parser = argparse.ArgumentParser(add_help=False)
    TransformerModel.add_args(parser)
    settings = argparse.Namespace()
    ARCH_CONFIG_REGISTRY[arch](settings)
    return {*vars(parser.parse_args([])), *vars(settings), *_NESTED}


def _history(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that fairseq reads the number of updates from."""
    last = state["optimizer_history"][-1]
    criterion = str(last.get("criterion_name"))
    return {
        "criterion_name": _CRITERION_CLASSES.get(criterion, criterion),
        "optimizer_name": str(last.get("optimizer_name")),
        # Without the optimizer's state fairseq does not restore the schedule either.
        "lr_scheduler_state": {},
        "num_updates": int(last["num_updates"]),
    }


def _extra_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """Where the training was, and its best loss. Meters are left out: they are of the mhe criterion, and of
    --eval-bleu they hold arrays, which torch refuses without the plugin."""
    extra = state["extra_state"]
    kept = ("train_iterator", "val_loss", "best", "previous_training_time")
    return {key: _plain(extra[key], {}) for key in kept if key in extra}


def _dict(options: Any) -> dict[str, Any]:
    """One part of a config, which is a dict, a Namespace for what fairseq has not migrated, or None."""
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return options if isinstance(options, dict) else {}


def _plain(value: Any, renamed: Mapping[str, str]) -> Any:
    """A copy without Namespaces, without options of this plugin, with the names of registered things
    replaced."""
    if isinstance(value, dict | argparse.Namespace):
        plain = {
            key: renamed.get(each, each) if key in _NAMES and isinstance(each, str) else _plain(each, renamed)
            for key, each in _dict(value).items()
            if not str(key).startswith(_PREFIX)
        }
        return plain | {"user_dir": None} if "user_dir" in plain else plain
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, renamed) for each in value)
    return value
