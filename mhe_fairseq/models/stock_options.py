"""The options of a model of ours, as fairseq's own model has them in its checkpoint.

``fairseq-train`` writes a checkpoint's ``cfg["model"]`` in two ways. A model that reads its flags by argparse
(transformer, roberta) has an ``argparse.Namespace`` of *all* flags of the training; one with a dataclass
(transformer_lm) has a dict of the dataclass's fields.

torch's ``weights_only=True``, under which torch since 2.6 loads unless told otherwise, refuses a Namespace:
so fairseq's commands and CTranslate2's converter refuse fairseq's own checkpoints of those models.
``attributes`` makes what both of them read in its place.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from fairseq.criterions import CRITERION_DATACLASS_REGISTRY
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_NAME_REGISTRY, MODEL_DATACLASS_REGISTRY
from fairseq.tasks import TASK_DATACLASS_REGISTRY
from omegaconf import OmegaConf

from mhe_fairseq.models.base import STARTED_FROM

PREFIX = "mhe_"

#: Same loss, over V-wide log-probabilities; the flags are the same, too, or fewer.
CRITERIONS = {"mhe_cross_entropy": "label_smoothed_cross_entropy", "mhe_masked_lm": "masked_lm"}

#: Options that say the name of a registered thing.
_NAMES = ("_name", "arch", "criterion", "task")
#: Files and folders of the machine that trained, which the weights do not need any more.
_FILES_OF_TRAINING = ("user_dir", *STARTED_FROM)


def stock_options(options: Mapping[str, Any], arch: str, stock: str, namespace: bool) -> dict[str, Any]:
    """A checkpoint's ``cfg`` without anything of this plugin.

    Args:
        options: the ``cfg``, its parts dicts or Namespaces; not changed.
        arch: the architecture, one of ours.
        stock: fairseq's, with a model of the same options.
        namespace: keep Namespaces, and make the model's options one where fairseq does.
    """
    task = str(as_dict(options.get("task")).get("_name"))
    renamed = {arch: stock, **CRITERIONS, task: task.removeprefix(PREFIX)}
    ours = str(as_dict(options.get("criterion")).get("_name"))
    cfg = _plain(options, renamed, namespace)
    if ours in CRITERIONS:
        cfg["criterion"] = _fitted(cfg["criterion"], CRITERION_DATACLASS_REGISTRY[CRITERIONS[ours]], cfg)
    # A task without a dataclass has flags, as its namesake of ours.
    fields_of_task = TASK_DATACLASS_REGISTRY.get(task.removeprefix(PREFIX))
    if task.startswith(PREFIX) and isinstance(cfg["task"], dict) and fields_of_task is not None:
        cfg["task"] = _fitted(cfg["task"], fields_of_task, cfg)
    model = _plain(as_dict(options["model"]), renamed, namespace)
    if dataclass := MODEL_DATACLASS_REGISTRY.get(_registered(stock)):
        model = _fitted({**model, "_name": stock}, dataclass, cfg)
        cfg["model"] = {**model, "_name": _without_choices(model, stock)}
    else:
        flags = _flags(model, cfg, stock, ours)
        cfg["model"] = argparse.Namespace(**flags) if namespace else attributes(flags)
    return cfg


def attributes(options: Mapping[str, Any]) -> OrderedDict[str, Any]:
    """A dict that has its items as attributes too.

    torch's ``weights_only=True`` knows an OrderedDict, and keeps the attributes of one, as those of a state
    dict. fairseq's models and CTranslate2's converter read attributes, and do not ask for more.
    """
    both: OrderedDict[str, Any] = OrderedDict(options)
    vars(both).update(options)
    return both


def as_dict(options: Any) -> dict[str, Any]:
    """One part of a config, which is a dict, a Namespace for what fairseq has not migrated, or None."""
    if isinstance(options, argparse.Namespace):
        return vars(options)
    return options if isinstance(options, dict) else {}


def _registered(stock: str) -> str:
    """The name under which fairseq knows the dataclass of an architecture's model."""
    return str(ARCH_MODEL_NAME_REGISTRY.get(stock, stock))


def _flags(model: dict[str, Any], cfg: Mapping[str, Any], stock: str, criterion: str) -> dict[str, Any]:
    """What fairseq-train has in a model's Namespace. ``fairseq-hydra-train`` writes the model's own options
    only: what it has elsewhere stands there too, and what the architecture sets."""
    flags = dict(model)
    if "arch" not in flags:
        task = as_dict(cfg.get("task"))
        flags = {**task, **flags, "task": task.get("_name"), "arch": stock}
    if criterion in CRITERIONS:
        theirs = as_dict(cfg["criterion"])
        own = {each.name for each in fields(CRITERION_DATACLASS_REGISTRY[criterion])}
        flags = {key: value for key, value in flags.items() if key not in own or key in theirs}
    settings = argparse.Namespace(**{**flags, "_name": stock})
    ARCH_CONFIG_REGISTRY[stock](settings)
    return vars(settings)


def _without_choices(model: dict[str, Any], stock: str) -> str:
    """The architecture to name: fairseq sets what an architecture chooses where the options say None, such as
    an adaptive softmax, which a model of ours has not. Its model's plain name sets nothing."""
    # As fairseq has them when it builds the model; of a Namespace it takes a None for a choice.
    settings = OmegaConf.create(model)
    ARCH_CONFIG_REGISTRY[stock](settings)
    chosen = {key: settings.get(key) for key in model}
    return stock if chosen == model else _registered(stock)


def _fitted(section: Mapping[str, Any], dataclass: type, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """A part of a config with the fields of fairseq's ``dataclass``: what more it has is left out, what it
    lacks is as by default, or where the default says ``${part.name}``, as there."""
    found = {}
    for each in fields(dataclass):
        if each.name in section:
            found[each.name] = section[each.name]
        elif isinstance(each.default, str) and each.default.startswith("${"):
            part, _, name = each.default[2:-1].partition(".")
            found[each.name] = as_dict(cfg.get(part)).get(name)
    return found | ({"_name": section["_name"]} if "_name" in section else {})


def _plain(value: Any, renamed: Mapping[str, str], namespace: bool) -> Any:
    """A copy without options of this plugin, with the names of registered things replaced; Namespaces become
    dicts where they are not to be kept."""
    if isinstance(value, dict | argparse.Namespace):
        plain = {
            key: renamed.get(each, each)
            if key in _NAMES and isinstance(each, str)
            else _plain(each, renamed, namespace)
            for key, each in as_dict(value).items()
            if not str(key).startswith(PREFIX)
        }
        plain |= {name: None for name in _FILES_OF_TRAINING if name in plain}
        return argparse.Namespace(**plain) if namespace and isinstance(value, argparse.Namespace) else plain
    if isinstance(value, list | tuple):
        return type(value)(_plain(each, renamed, namespace) for each in value)
    return value
