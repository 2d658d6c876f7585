"""One line that says what a model was trained with, printed by its training and by all that loads it.

As sacrebleu's signatures do for a score. A checkpoint keeps it, so that a translation can be traced to a
training: ``mhe:0.1.0|fairseq:0.12.3|torch:2.13.0|task:mhe_translation|arch:mhe_transformer|head:cascade|
lengths:117x136|codebook:8cf5e70a0ba60758|criterion:mhe_cross_entropy|smoothing:0.1|ranks:1|precision:fp32|
seed:1|settings:5d0f63be``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from fairseq.dataclass import configs

from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.settings import all_settings
from mhe_fairseq.version import __version__

logger = logging.getLogger(__name__)

#: Distributions of fairseq's code.
_FAIRSEQ = ("ve-fairseq", "fairseq-fixed", "fairseq")

#: Sections of fairseq's config that do not say what is learned, but where, on how many machines, how it is
#: logged, saved and, later, searched.
_ASIDE = {
    "common": configs.CommonConfig,
    "common_eval": configs.CommonEvalConfig,
    "distributed_training": configs.DistributedTrainingConfig,
    "checkpoint": configs.CheckpointConfig,
    "bmuf": configs.FairseqBMUFConfig,
    "generation": configs.GenerationConfig,
    "eval_lm": configs.EvalLMConfig,
    "interactive": configs.InteractiveConfig,
    "ema": configs.EMAConfig,
}

#: The same of single settings. The codebook's fingerprint is there in place of its file; a training that goes
#: on for longer is the same one.
_ASIDE_SETTINGS = {
    "data",
    "user_dir",
    "num_workers",
    "data_buffer_size",
    "max_update",
    "max_epoch",
    "stop_time_hours",
    "mhe_codebook",
    "mhe_dictionary",
    "mhe_signature",
    "no_seed_provided",
}

#: Flags that came later: where they are not given, the fingerprint is the one from before them.
_LATER = {"mhe_group_prototypes", "mhe_bias", "mhe_exact_last", "mhe_exact_after"}

SETTINGS_OF_ASIDE = {
    field.name for section in _ASIDE.values() for field in dataclasses.fields(section)
} | _ASIDE_SETTINGS


def sign(args: Any, options: HeadOptions, settings: Any) -> None:
    """Give ``args`` the signature of this training, or leave it that of the one its model comes from; log it.

    Args:
        args: flat.
        options: the head's.
        settings: as ``signature`` wants them.
    """
    # Checkpoints from before there were signatures have none.
    kept = getattr(args, "mhe_signature", None)
    args.mhe_signature = kept if options.restored else signature(settings, options)
    if args.mhe_signature:
        logger.info("mhe: signature %s", args.mhe_signature)


def signature(args: Any, options: HeadOptions) -> str:
    """The line, of a model that is about to be trained.

    Args:
        args: as fairseq gives them to ``build_model``: a namespace of all settings, or the model's config,
            whose parent has the others. What is not known is left out.
        options: the head's.
    """
    given = all_settings(args)
    book = options.codebook
    parts = {
        "mhe": __version__,
        "fairseq": _fairseq_version(),
        "torch": torch.__version__.partition("+")[0],
        "task": given.get("task"),
        "arch": given.get("arch"),
        "head": options.head,
        "lengths": "x".join(map(str, book.lengths)),
        "codebook": book.fingerprint,
        "prototypes": options.group_prototypes if (options.group_prototypes or 1) > 1 else None,
        "criterion": given.get("criterion"),
        "smoothing": given.get("label_smoothing"),
        "ranks": given.get("distributed_world_size"),
        "precision": _precision(given),
        "seed": given.get("seed"),
        "settings": _fingerprint(given),
    }
    return "|".join(f"{name}:{value}" for name, value in parts.items() if value is not None)


def _fingerprint(given: dict[str, Any]) -> str:
    """Of what is learned and how: sizes, batches, optimiser, schedule, ..."""
    learned = {
        name: value
        for name, value in given.items()
        if name not in SETTINGS_OF_ASIDE
        and name not in _ASIDE
        and not name.startswith("_")
        and not (name in _LATER and not value)
    }
    return hashlib.sha256(json.dumps(learned, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _precision(given: dict[str, Any]) -> str:
    for kind in ("amp", "bf16", "fp16"):
        for name in (kind, f"memory_efficient_{kind}"):
            if given.get(name):
                return kind
    return "fp32"


def _fairseq_version() -> str | None:
    for name in _FAIRSEQ:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None
