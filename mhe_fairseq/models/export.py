"""A trained model with a V x d output layer, as a checkpoint of fairseq's own transformer or roberta.

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
from fairseq.criterions.masked_lm import MaskedLmConfig
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY
from omegaconf import OmegaConf
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state
from mhe_fairseq.models.base import STARTED_FROM
from mhe_fairseq.models.families import DICTIONARY, PREFIX, ROBERTA, TRANSFORMER, Family
from mhe_fairseq.models.roberta import BIAS_WIDTH

#: The heads whose probabilities, outside of training, are the softmax of one V x d projection.
EXPORTABLE = ("softmax", "sampling")

#: The models that are exported.
EXPORTED = (TRANSFORMER, ROBERTA)


#: Same loss, over V-wide log-probabilities; the flags are the same, too, or fewer.
_CRITERIONS = {"mhe_cross_entropy": "label_smoothed_cross_entropy", "mhe_masked_lm": "masked_lm"}
_CRITERION_CLASSES = {
    "MHECrossEntropyCriterion": "LabelSmoothedCrossEntropyCriterion",
    "MHEMaskedLMCriterion": "MaskedLmLoss",
}
_CRITERION_CONFIGS = {
    "label_smoothed_cross_entropy": LabelSmoothedCrossEntropyCriterionConfig,
    "masked_lm": MaskedLmConfig,
}
#: Options that say the name of a registered thing.
_NAMES = ("_name", "arch", "criterion", "task")
#: Files and folders of the machine that trained, which the weights do not need any more.
_FILES_OF_TRAINING = ("user_dir", *STARTED_FROM)
#: What a hydra config may give in place of the flat ``encoder_layers``, ``quant_noise_pq``, ...
_NESTED = ("encoder", "decoder", "quant_noise")


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
        masked: a masked language model, or a classifier made of one.
    """

    state: dict[str, Any]
    arch: str
    head: str | None
    vocab_size: int
    dim: int
    dtype: torch.dtype
    tied: bool
    trained: bool
    masked: bool


def to_stock(state: Mapping[str, Any], name: str, body: bool = False) -> StockCheckpoint:
    """Convert a checkpoint. The optimizer's state, which is most of a file, is left out.

    Args:
        state: as ``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` returns it; not changed, tensors shared.
        name: what to call it in an error.
        body: of a masked language model export what is under the output layer, whatever the head; the output
            layer is fairseq's, tied to the embeddings and not trained.

    Raises:
        MHEError: not of ``mhe_transformer`` or ``mhe_roberta``, or of a head that no softmax of V x d equals.
    """
    cfg, weights = state.get("cfg"), state.get("model")
    # to_container leaves a Namespace, which fairseq keeps in a config, as it is.
    options = OmegaConf.to_container(cfg, resolve=True, enum_to_str=True) if OmegaConf.is_config(cfg) else cfg
    if not isinstance(options, dict) or not isinstance(weights, Mapping):
        raise MHEError(f"{name} is not one of a fairseq model: it has no options or no weights")
    model = _dict(options.get("model"))
    arch = str(model.get("_name") or model.get("arch"))
    family, stock_arch = _family(arch, name)
    head = _head(family, weights, model, name, body)
    task = str(_dict(options.get("task")).get("_name"))
    renamed = {arch: stock_arch, **_CRITERIONS, task: task.removeprefix(PREFIX)}
    stock_options = _plain(options, renamed)
    # A Namespace has every flag of the training, most of which are no options of a model.
    known = {"_name", *_model_options(family, stock_arch)}
    settings = {**stock_options["model"], "_name": stock_arch}
    stock_options["model"] = {key: value for key, value in settings.items() if key in known}
    criterion = stock_options.get("criterion")
    if _dict(options.get("criterion")).get("_name") in _CRITERIONS:
        theirs = {field.name for field in fields(_CRITERION_CONFIGS[criterion["_name"]])}
        stock_options["criterion"] = {key: criterion[key] for key in criterion if key in theirs}
    trained = head in EXPORTABLE
    stock_weights, tied = _stock_weights(family, weights, name, trained)
    projection = stock_weights[family.projection]
    if family is ROBERTA and not tied:
        stock_options["model"]["untie_weights_roberta"] = True
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
    return StockCheckpoint(
        stock, stock_arch, head, vocab_size, dim, projection.dtype, tied, trained, family is ROBERTA
    )


def _family(arch: str, name: str) -> tuple[Family, str]:
    """What ``arch`` is of, and fairseq's architecture with its settings."""
    stock = arch.removeprefix(PREFIX)
    for family in EXPORTED:
        if ARCH_MODEL_REGISTRY.get(arch) is family.ours and stock in ARCH_CONFIG_REGISTRY:
            return family, stock
    whose = "fairseq's own " if stock == arch and arch in ARCH_MODEL_REGISTRY else ""
    raise MHEError(
        f"{name} is of {whose}--arch {arch}; export is for mhe_transformer and mhe_roberta and their "
        "architectures"
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
    head = str(model.get("mhe_head")) if has_head or family is TRANSFORMER else None
    if head in EXPORTABLE:
        return head
    if family is TRANSFORMER:
        wanted = "; --body is for masked language models" if body else ""
        raise MHEError(
            f"{name} has a {head} head, and no softmax of V x d equals it; heads that can be exported are "
            f"{' and '.join(EXPORTABLE)}{wanted}"
        )
    if not body:
        what = "no output head" if head is None else f"a {head} head, and no softmax of V x d equals it"
        raise MHEError(
            f"{name} has {what}; heads that can be exported are {' and '.join(EXPORTABLE)}; --body exports "
            "what is under the head, with an output layer that is not trained"
        )
    return head


def _stock_weights(
    family: Family, weights: Mapping[str, Tensor], name: str, trained: bool
) -> tuple[dict[str, Tensor], bool]:
    """The state dict of fairseq's model, and whether its projection is tied.

    A tied projection is named too, as fairseq does: the same tensor, stored once.
    """
    own = [key for key in weights if key.startswith(family.head)]
    unknown = sorted(key for key in own if trained and key not in (family.table, *family.ignored))
    is_tied = family.table not in weights or not trained
    table = weights.get(family.embedding if is_tied else family.table)
    if unknown or table is None or table.dim() != 2:
        seen = ", ".join(unknown) if unknown else f"neither {family.table} nor {family.embedding}"
        raise MHEError(f"{name} has {seen}, so its output layer is not a table of V x d")
    stock = {key: value for key, value in weights.items() if key not in own and key != DICTIONARY}
    if not trained:
        stock[family.embedding] = table = with_rows_of_state(table, dict(weights), family.head)
    bias = table.new_zeros(len(table))
    dim = weights[family.embedding].size(1) if family.embedding in weights else table.size(1)
    if family is ROBERTA and table.size(1) == dim + BIAS_WIDTH:
        table, bias = table[:, :dim].clone(), table[:, dim].clone()
    stock[family.projection] = table
    if family is ROBERTA:
        stock |= {**_untrained_transform(table), **stock, "encoder.lm_head.bias": bias}
    return stock, is_tied


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


def _model_options(family: Family, arch: str) -> set[str]:
    """The names of a model's options: its flags, and what its architecture sets beside them."""
    parser = argparse.ArgumentParser(add_help=False)
    family.stock.add_args(parser)  # type: ignore[attr-defined]
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
            if not str(key).startswith(PREFIX)
        }
        return plain | {name: None for name in _FILES_OF_TRAINING if name in plain}
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, renamed) for each in value)
    return value
