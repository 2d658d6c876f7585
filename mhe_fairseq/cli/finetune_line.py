"""The command that trains a converted checkpoint on, with the settings of the training it is of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairseq import options

from mhe_fairseq.cli.convert_run import Done
from mhe_fairseq.models.base import STARTED_FROM
from mhe_fairseq.models.settings import all_settings
from mhe_fairseq.models.signature import SETTINGS_OF_ASIDE

#: Share of the updates that the model was trained for.
SHARE = 0.1

#: Settings of where and how a training runs that change what is learned.
_KEPT = {
    "seed", "fp16", "bf16", "amp", "memory_efficient_fp16", "memory_efficient_bf16", "fp16_init_scale",
    "fp16_scale_window", "min_loss_scale", "amp_init_scale", "amp_scale_window",
}  # fmt: skip

#: What the line says itself.
_OWN = {
    "data", "arch", "task", "criterion", "optimizer", "lr", "lr_scheduler", "warmup_updates",
    "total_num_update", "end_learning_rate", "power", "force_anneal", "stop_min_lr",
    *STARTED_FROM,
}  # fmt: skip


def finetune_line(done: Done, data: str, output: Path, codebook: str | Path | None) -> list[str]:
    """Words of a fairseq-train command: a tenth of the updates, the learning rate falling from what it was
    at the end of the training to nothing.

    Args:
        done: the conversion.
        data: to train on.
        output: where the checkpoint was written.
        codebook: file of the head's codebook, None where it has the dictionary's order.
    """
    cfg = done.state["cfg"]
    settings = all_settings(cfg.model)
    updates = max(1, round(SHARE * done.state["optimizer_history"][-1]["num_updates"]))
    rate = done.rate or _first(settings.get("lr"))
    base = [
        data, "--arch", done.kind.ours, "--task", str(cfg.task._name), "--criterion",
        str(cfg.criterion._name), "--optimizer", str(cfg.optimizer._name or "adam"),
    ]  # fmt: skip
    schedule = [
        "--lr", f"{rate:.4g}", "--lr-scheduler", "polynomial_decay", "--warmup-updates",
        str(updates // 10), "--total-num-update", str(updates), "--max-update", str(updates),
    ]  # fmt: skip
    head = ["--mhe-head", str(settings["mhe_head"])]
    if codebook is not None:
        head += ["--mhe-codebook", str(codebook)]
    if settings.get("mhe_group_rows"):
        head += ["--mhe-group-rows", str(settings["mhe_group_rows"])]
    if done.prototypes > 1:
        head += ["--mhe-group-prototypes", str(done.prototypes)]
    return [
        "fairseq-train", *base[:1], "--user-dir", "mhe_fairseq", *base[1:], *head,
        "--finetune-from-model", str(output), *_changed(settings, [*base, *schedule]), *schedule,
        "--save-dir", str(output.with_name(f"{output.stem}-trained-on")),
    ]  # fmt: skip


def _changed(settings: dict[str, Any], words: list[str]) -> list[str]:
    """Flags for settings that are not what a training with these ``words`` has."""
    parser = options.get_training_parser()
    usual = vars(options.parse_args_and_arch(parser, words))
    line = []
    for action in parser._actions:
        name = action.dest
        if not action.option_strings or name in _OWN or name.startswith("mhe_"):
            continue
        if name in SETTINGS_OF_ASIDE and name not in _KEPT:
            continue
        value = settings.get(name)
        if value is None or str(value) == str(usual.get(name)):
            continue
        flag = max(action.option_strings, key=len)
        if action.nargs == 0:
            line += [flag] if value is True and isinstance(action, argparse._StoreTrueAction) else []
        elif action.nargs in ("+", "*"):
            line += [flag, *map(str, value)]
        else:
            line += [flag, ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)]
    return line


def _first(rate: Any) -> float:
    """The first of a schedule's learning rates."""
    return float(rate[0] if isinstance(rate, list | tuple) else rate or 1e-4)
