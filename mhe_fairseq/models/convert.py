"""A trained model, fairseq's own or ours, as a checkpoint of ours with another head."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads.sampling.head import default_groups
from mhe_fairseq.models.convertible import Kind, OutputLayer
from mhe_fairseq.models.families import DICTIONARY, ROBERTA
from mhe_fairseq.models.flags import FLAGS, SWITCHES
from mhe_fairseq.models.options import HeadOptions, pinned
from mhe_fairseq.models.roberta import dictionary_pin
from mhe_fairseq.models.settings import all_settings, set_options
from mhe_fairseq.models.signature import signature
from mhe_fairseq.models.source_embedding import MAP

#: Heads that a checkpoint is converted to.
HEADS = ("cascade", "sampling", "softmax")

#: Criterions of fairseq, and which of ours computes the same loss.
_CRITERIONS = {
    "label_smoothed_cross_entropy": ("mhe_cross_entropy", "MHECrossEntropyCriterion"),
    "cross_entropy": ("mhe_cross_entropy", "MHECrossEntropyCriterion"),
    "masked_lm": ("mhe_masked_lm", "MHEMaskedLMCriterion"),
}

#: Tasks that search a cascade without V-wide work, by fairseq's that they are.
_SEARCHING = {
    "translation": "mhe_translation",
    "language_modeling": "mhe_language_modeling",
    "translation_from_pretrained_bart": "mhe_translation_from_pretrained_bart",
}


@dataclass(frozen=True)
class NewHead:
    """What a model is converted to.

    Attributes:
        head: one of ``HEADS``.
        codebook: of the dictionary's tokens.
        group_rows: of a cascade: (L_1 m, d), those of a group next to each other.
        group_bias: of a cascade: (L_1 m,).
        prototypes: m.
    """

    head: str
    codebook: Codebook
    group_rows: Tensor | None = None
    group_bias: Tensor | None = None
    prototypes: int = 1


def converted(
    state: Mapping[str, Any], kind: Kind, layer: OutputLayer, new: NewHead, symbols: list[str]
) -> dict[str, Any]:
    """The checkpoint with another output layer. The optimizer's state is left out.

    Args:
        state: the checkpoint, as ``fairseq.checkpoint_utils.load_checkpoint_to_cpu`` returns it; not changed.
        kind, layer: what it is.
        new: what it gets.
        symbols: of the V tokens.

    Returns:
        as ``load_checkpoint_to_cpu`` does: its ``cfg`` is a config, and plain containers in a file.
    """
    cfg = copy.deepcopy(state["cfg"])
    entry = _history(state)
    _set_model(cfg, kind, layer, new, symbols)
    criterion = str(getattr(cfg.criterion, "_name", None))
    if criterion in _CRITERIONS:
        ours, entry["criterion_name"] = _CRITERIONS[criterion]
        _rename(cfg, "criterion", ours)
        fields = dataclasses.fields(CRITERION_DATACLASS_REGISTRY[ours])
        values = {field.name: getattr(cfg.criterion, field.name, field.default) for field in fields}
        # What is said elsewhere in the config is filled in from there.
        known = {key: value for key, value in values.items() if not str(value).startswith("${")}
        set_options(cfg, criterion={"_name": ours, **known})
    if new.head == "cascade" and cfg.task._name in _SEARCHING:
        _rename(cfg, "task", _SEARCHING[cfg.task._name])
    _sign(cfg, kind, new)
    return {
        "args": None,
        "cfg": cfg,
        "model": _weights(kind, layer, new, symbols),
        "criterion": None,
        "optimizer_history": [entry],
        "task_state": {},
        "extra_state": {
            key: state["extra_state"][key]
            for key in ("train_iterator", "previous_training_time")
            if key in state["extra_state"]
        },
    }


def _weights(kind: Kind, layer: OutputLayer, new: NewHead, symbols: list[str]) -> dict[str, Tensor]:
    family, book = kind.family, new.codebook
    weights = dict(layer.body)
    weights[family.head + "codebook_slots"] = book.slots.clone()
    weights[family.head + "codebook_lengths"] = torch.tensor(book.lengths)
    if family is ROBERTA:
        weights[DICTIONARY] = dictionary_pin(symbols)
    if new.head != "cascade":
        if not layer.tied:
            weights[family.table] = layer.table
        return weights
    assert new.group_rows is not None and new.group_bias is not None
    weights[family.head + "group.weight"] = new.group_rows.to("cpu", layer.table.dtype)
    weights[family.head + "group.bias"] = new.group_bias.to("cpu", layer.table.dtype)
    if not layer.tied:
        weights[family.head + "local.table"] = rows_by_slot(layer.table, book).view(*book.lengths, -1)
    return weights


def rows_by_slot(table: Tensor, codebook: Codebook) -> Tensor:
    """The rows of tokens in the order of slots, zero for holes. Shape: (V, d) -> (prod(lengths), d)."""
    rows = table.new_zeros(codebook.size, table.size(1))
    rows[codebook.slots.to(table.device)] = table
    return rows


def _set_model(cfg: Any, kind: Kind, layer: OutputLayer, new: NewHead, symbols: list[str]) -> None:
    """Give the model's config the options of the new head."""
    options = dict.fromkeys((*FLAGS, "mhe_signature"), None) | dict.fromkeys(SWITCHES, False)
    options |= {
        "mhe_head": new.head,
        "mhe_lengths": ",".join(map(str, new.codebook.lengths)),
        "mhe_fingerprint": new.codebook.fingerprint,
        "mhe_dictionary": pinned(symbols),
        "mhe_bias": layer.has_bias,
    }
    if new.head == "sampling":
        # What a training with a codebook has.
        options["mhe_sampling"] = "predicted"
        options["mhe_groups"] = default_groups(new.codebook)
    if new.head == "cascade":
        # Features are what they were: no rows of groups in the input.
        options["mhe_group_rows"] = "own"
        options["mhe_group_prototypes"] = new.prototypes if new.prototypes > 1 else None
    checked = argparse.Namespace(**options)
    HeadOptions.resolve(checked, symbols)
    # What a new model would have may be another.
    checked.mhe_tie = "linear" if MAP in layer.body else "exact" if layer.tied else None
    set_options(cfg.model, **vars(checked))
    if not layer.tied:
        _untie(cfg.model)
    _rename(cfg, "model", kind.ours)
    if hasattr(cfg.model, "arch"):
        set_options(cfg.model, arch=kind.ours)


def _untie(model: Any) -> None:
    """Tell a model's options that its output layer has a table of its own."""
    for name, value in _UNTIED.items():
        if hasattr(model, name):
            set_options(model, **{name: value})


def _sign(cfg: Any, kind: Kind, new: NewHead) -> None:
    """The signature of the training, and what was made of it."""
    args = cfg.model
    options = HeadOptions.resolve(
        argparse.Namespace(**{key: value for key, value in all_settings(args).items() if key in _RESOLVED}),
        [str(number) for number in range(len(new.codebook))],
    )
    options = dataclasses.replace(options, codebook=new.codebook)
    set_options(args, mhe_signature=f"{signature(args, options)}|converted:{kind.arch}")


#: Options of an output layer that is not the embeddings', of the models that have them.
_UNTIED = {
    "share_all_embeddings": False,
    "share_decoder_input_output_embed": False,
    "untie_weights_roberta": True,
}

#: What ``HeadOptions`` reads.
_RESOLVED = (*FLAGS, *SWITCHES, "mhe_fingerprint", "share_all_embeddings")


def _rename(cfg: Any, section: str, name: str) -> None:
    """Give a section the name of another registered thing, and tell the model's namespace of it."""
    set_options(cfg[section], _name=name)
    if isinstance(cfg.model, argparse.Namespace) and hasattr(cfg.model, section):
        setattr(cfg.model, section, name)


def _history(state: Mapping[str, Any]) -> dict[str, Any]:
    """The entry that fairseq reads the number of updates from."""
    last = state["optimizer_history"][-1]
    return {
        "criterion_name": str(last.get("criterion_name")),
        "optimizer_name": str(last.get("optimizer_name")),
        # Without the optimizer's state fairseq does not restore the schedule either.
        "lr_scheduler_state": {},
        "num_updates": int(last["num_updates"]),
    }
