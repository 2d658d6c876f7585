"""The command that trains a converted checkpoint on, with the settings of the training it is of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fairseq import options

from mhe_fairseq.models.base import STARTED_FROM
from mhe_fairseq.models.flags import FLAGS, SWITCHES, flag
from mhe_fairseq.models.settings import all_settings
from mhe_fairseq.models.signature import SETTINGS_OF_ASIDE
from mhe_fairseq.models.stock_options import PREFIX

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


#: What the codebook's file says, and what counts updates of the training before.
_LEFT_OUT = ("mhe_lengths", "mhe_codebook", "mhe_exact_after")


def finetune_line(
    state: dict[str, Any],
    arch: str,
    rate: float | None,
    data: str,
    output: Path,
    codebook: str | Path | None,
) -> list[str]:
    """Words of a fairseq-train command: a tenth of the updates, the learning rate falling from what it was
    at the end of the training to nothing.

    Args:
        state: the checkpoint, its config not yet plain.
        arch: its architecture.
        rate: the learning rate at the end of its training; None: not known.
        data: to train on.
        output: where the checkpoint was written.
        codebook: file of the head's codebook, None where it has the dictionary's order.
    """
    cfg = state["cfg"]
    settings = all_settings(cfg.model)
    updates = max(1, round(SHARE * state["optimizer_history"][-1]["num_updates"]))
    rate = rate or _first(settings.get("lr"))
    base = [
        data, "--arch", arch, "--task", str(cfg.task._name), "--criterion",
        str(cfg.criterion._name), "--optimizer", str(cfg.optimizer._name or "adam"),
    ]  # fmt: skip
    schedule = [
        "--lr", f"{rate:.4g}", "--lr-scheduler", "polynomial_decay", "--warmup-updates",
        str(updates // 10), "--total-num-update", str(updates), "--max-update", str(updates),
    ]  # fmt: skip
    head = ["--mhe-codebook", str(codebook)] if codebook is not None else []
    if arch.startswith(PREFIX):
        given = {name: settings.get(name) for name in FLAGS if name not in _LEFT_OUT}
        head += [
            word for name, value in given.items() if value is not None for word in (flag(name), str(value))
        ]
        head += [flag(name) for name in SWITCHES if settings.get(name)]
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
