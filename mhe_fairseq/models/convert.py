"""A model with a V x d output layer, fairseq's own or ours, as a checkpoint of ours with another head."""

from __future__ import annotations

import argparse
import copy
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from torch import Tensor

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sampling.head import default_groups
from mhe_fairseq.models.export import EXPORTABLE
from mhe_fairseq.models.families import DICTIONARY, LANGUAGE_MODEL, ROBERTA, TRANSFORMER, Family
from mhe_fairseq.models.flags import FLAGS, SWITCHES
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.roberta import BIAS_WIDTH
from mhe_fairseq.models.settings import all_settings, set_options
from mhe_fairseq.models.signature import signature
from mhe_fairseq.models.stock_options import PREFIX

#: The models that are converted.
CONVERTED = (TRANSFORMER, LANGUAGE_MODEL, ROBERTA)

#: Heads that a checkpoint is converted to.
HEADS = ("cascade", "sampling", "softmax")

#: Criterions of fairseq, and which of ours computes the same loss.
_CRITERIONS = {
    "label_smoothed_cross_entropy": ("mhe_cross_entropy", "MHECrossEntropyCriterion"),
    "cross_entropy": ("mhe_cross_entropy", "MHECrossEntropyCriterion"),
    "masked_lm": ("mhe_masked_lm", "MHEMaskedLMCriterion"),
}

#: Tasks that search a cascade without V-wide work, by fairseq's that they are.
_SEARCHING = {"translation": "mhe_translation", "language_modeling": "mhe_language_modeling"}


@dataclass(frozen=True)
class Kind:
    """What a checkpoint is of.

    Attributes:
        family: its model, of fairseq and of ours.
        arch: the architecture it is of.
        ours: that of ours with the same settings.
        head: which of our heads it has; None: it is fairseq's own.
    """

    family: Family
    arch: str
    ours: str
    head: str | None


def kind_of(cfg: Any, name: str, wanted: str) -> Kind:
    """What a checkpoint is of.

    Args:
        cfg: its config.
        name: what to call it in an error.
        wanted: the head to convert to, one of ``HEADS``.

    Raises:
        MHEError: a model that is not converted, or one whose head is no softmax of V x d.
    """
    model = cfg.model
    arch = str(getattr(model, "_name", None) or getattr(model, "arch", None))
    stock = arch.removeprefix(PREFIX)
    cls = ARCH_MODEL_REGISTRY.get(arch) or MODEL_REGISTRY.get(arch)
    for family in CONVERTED:
        if cls in (family.ours, family.stock):
            break
    else:
        raise MHEError(
            f"{name} is of --arch {arch}; convert is for transformer, transformer_lm and roberta, fairseq's "
            "own and ours, and their architectures"
        )
    # An architecture is where unset options begin, and a checkpoint has all of them.
    base = next(each for each, model_cls in MODEL_REGISTRY.items() if model_cls is family.ours)
    ours = PREFIX + stock if ARCH_MODEL_REGISTRY.get(PREFIX + stock) is family.ours else base
    head = str(getattr(model, "mhe_head", None)) if cls is family.ours else None
    if head == wanted:
        raise MHEError(f"{name} has a {head} head already, there is nothing to convert")
    if head is not None and head not in EXPORTABLE:
        raise MHEError(
            f"{name} has a {head} head, and no softmax of V x d equals it; convert is for fairseq's own "
            f"models and for heads {' and '.join(EXPORTABLE)}"
        )
    for option in ("adaptive_softmax_cutoff", "base_layers"):
        if head is None and getattr(model, option, None):
            shown = "--" + option.replace("_", "-")
            raise MHEError(
                f"{name} was trained with {shown} {getattr(model, option)}, so its output layer is no table "
                "of V x d; convert is for a softmax"
            )
    return Kind(family, arch, ours, head)


@dataclass(frozen=True)
class OutputLayer:
    """A softmax of V x d, and the model under it.

    Attributes:
        body: the weights of the rest, as ours has them.
        table: (V, d), or (V, d + ``BIAS_WIDTH``).
        has_bias: features are to be given to ``with_one``.
        tied: the table is the embedding of the tokens it predicts.
    """

    body: dict[str, Tensor]
    table: Tensor
    has_bias: bool
    tied: bool


def output_layer(kind: Kind, weights: Mapping[str, Tensor], name: str) -> OutputLayer:
    """Take a model's weights apart.

    Args:
        kind: the checkpoint's.
        weights: the state dict of the model, as it was built; tensors are shared.
        name: what to call the checkpoint in an error.

    Raises:
        MHEError: there is no table where it should be.
    """
    family = kind.family
    embedding = weights.get(family.embedding)
    if kind.head is None:
        table = weights.get(family.projection)
        tied = None not in (embedding, table) and _same(embedding, table)
    else:
        tied = family.table not in weights
        table = embedding if tied else weights[family.table]
    if table is None or table.dim() != 2:
        raise MHEError(f"{name} has no table of V x d at {family.projection}")
    bias_name = family.projection.removesuffix("weight") + "bias"
    bias = weights.get(bias_name) if kind.head is None else None
    # Our roberta has a bias only where it is asked for.
    has_bias = (
        kind.head is not None and embedding is not None and table.size(1) == embedding.size(1) + BIAS_WIDTH
    )
    if bias is not None and bool(bias.any()):
        added = table.new_zeros(len(table), BIAS_WIDTH)
        added[:, 0] = bias
        table, has_bias, tied = torch.cat([table, added], dim=1), True, False
    left_out = (family.projection, bias_name, DICTIONARY)
    body = {
        key: value
        for key, value in weights.items()
        if key not in left_out and not key.startswith(family.head)
    }
    return OutputLayer(body, table, has_bias, tied)


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    """Both are the same memory."""
    return one is not None and other is not None and one.data_ptr() == other.data_ptr()


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
        # 64 bits, as a signed number.
        weights[DICTIONARY] = torch.tensor(int(symbols_fingerprint(symbols), 16) - 2**63)
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


def as_saved(layer: OutputLayer, saved: Mapping[str, Any]) -> OutputLayer:
    """A layer of a model that was built, on the CPU and in the precision of its checkpoint's state dict."""
    usual = next(each.dtype for each in saved.values() if each.is_floating_point())
    made: dict[int, Tensor] = {}

    def as_it_was(name: str | None, tensor: Tensor) -> Tensor:
        dtype = tensor.dtype
        if tensor.is_floating_point():
            dtype = saved[name].dtype if name is not None and name in saved else usual
        # Shared tables stay shared, and are saved once.
        key = tensor.data_ptr()
        if key not in made or made[key].shape != tensor.shape:
            made[key] = tensor.detach().to("cpu", dtype)
        return made[key]

    body = {name: as_it_was(name, tensor) for name, tensor in layer.body.items()}
    return OutputLayer(body, as_it_was(None, layer.table), layer.has_bias, layer.tied)


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
        "mhe_bias": layer.has_bias,
    }
    if new.head == "sampling":
        options["mhe_groups"] = default_groups(new.codebook)
    if new.head == "cascade":
        # Features are what they were: no rows of groups in the input.
        options["mhe_group_rows"] = "own"
        options["mhe_group_prototypes"] = new.prototypes if new.prototypes > 1 else None
    checked = argparse.Namespace(**options)
    HeadOptions.resolve(checked, symbols)
    set_options(cfg.model, **vars(checked))
    _rename(cfg, "model", kind.ours)
    if hasattr(cfg.model, "arch"):
        set_options(cfg.model, arch=kind.ours)


def _sign(cfg: Any, kind: Kind, new: NewHead) -> None:
    """The signature of the training, and what was made of it."""
    args = cfg.model
    options = HeadOptions.resolve(
        argparse.Namespace(**{key: value for key, value in all_settings(args).items() if key in _RESOLVED}),
        [str(number) for number in range(len(new.codebook))],
    )
    options = dataclasses.replace(options, codebook=new.codebook)
    set_options(args, mhe_signature=f"{signature(args, options)}|converted:{kind.arch}")


#: What ``HeadOptions`` reads.
_RESOLVED = (*FLAGS, *SWITCHES, "mhe_fingerprint")


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
