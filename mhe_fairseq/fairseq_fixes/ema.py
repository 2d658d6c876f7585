"""``--store-ema`` averages each weight once, and nothing but weights; such a training can be resumed.

What is wrong in fairseq:

- Its average multiplies whole numbers too, such as our code tables, which torch refuses.
- A tensor with several names in the state dict is averaged once for each: shared embeddings forget two or
  three times as fast as ``--ema-decay`` says.
- The average is loaded back at each update without the ``version`` of its encoder and decoder, so a
  transformer takes itself for an old one: with ``--decoder-normalize-before`` its average has no last layer
  norm, and without one it cannot be used.
- A training that begins to average from a checkpoint without an average ends in ``KeyError: 'model'``.
- A resumed training does not know how many updates there were since the last average
  (``--ema-update-freq``).
- A file that averaged weights cannot be read from is a page of traceback.

Here the average is changed in place, each tensor once; whole numbers and versions are those of the model.

In fairseq 0.12. Can go when its EMA does so.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fairseq import checkpoint_utils
from fairseq.models.ema.ema import EMA
from fairseq.trainer import Trainer
from torch import nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap
from mhe_fairseq.fairseq_fixes.checkpoints import explained

logger = logging.getLogger(__name__)


def install() -> None:
    """Take the place of fairseq's methods."""
    EMA._step_internal = average
    wrap(EMA, "__init__", _seeded)
    wrap(Trainer, "load_checkpoint", _resumed)
    wrap(checkpoint_utils, "load_ema_from_checkpoint", _with_average)
    wrap(checkpoint_utils, "load_ema_from_checkpoint", explained)


@torch.no_grad()
def average(self: Any, new_model: nn.Module, updates: int | None = None) -> None:
    """Move the averages of an ``EMA`` towards a model's weights.

    Args:
        self: with ``decay``, between 0 (the model's weights) and 1 (no change).
        new_model: with the weights of this update.
        updates: not read.

    Raises:
        ValueError: a weight has another shape than its average.
    """
    in_use = self.model.state_dict()
    averages = self.fp32_params if self.config.ema_fp32 else in_use
    done = set()
    for name, value in new_model.state_dict().items():
        # A name of the state dict may be that of something else (``get_extra_state``).
        if not isinstance(value, torch.Tensor) or name not in averages:
            continue
        kept = averages[name]
        if value.shape != kept.shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, its average {tuple(kept.shape)}")
        place = (kept.data_ptr(), kept.shape, kept.stride())
        if place not in done:
            done.add(place)
            is_weight = kept.is_floating_point() and not _is_version(name) and name not in self.skip_keys
            if is_weight:
                kept.mul_(self.decay).add_(value.to(kept.dtype), alpha=1 - self.decay)
            else:
                kept.copy_(value)
        if in_use[name].data_ptr() != kept.data_ptr():
            in_use[name].copy_(kept)


def _is_version(name: str) -> bool:
    return name.rpartition(".")[2] == "version"


def _seeded(begin: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, model: nn.Module, config: Any, *args: Any, **kwargs: Any) -> None:
        try:
            begin(self, model, config, *args, **kwargs)
        except RuntimeError as error:
            if isinstance(error, MHEError) or "loading state_dict" not in str(error):
                raise
            reason = str(error).splitlines()[1].strip()
            raise MHEError(
                f"--ema-seed-model {config.ema_seed_model} is not of this model ({reason}); give a "
                "checkpoint of a training with the same data and architecture"
            ) from error

    return __init__


def _resumed(method: Callable[..., Any]) -> Callable[..., Any]:
    def load_checkpoint(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not self.cfg.ema.store_ema:
            return method(self, *args, **kwargs)
        if not 0.0 <= self.cfg.ema.ema_decay <= 1.0:
            raise MHEError(f"--ema-decay must be a number from 0 to 1, got {self.cfg.ema.ema_decay}")
        with _no_average(self.cfg.ema):
            extra = method(self, *args, **kwargs)
        if extra is not None:
            _take_up(self, extra)
        elif self.cfg.ema.ema_seed_model is not None:
            # A seed that does not fit is told before the first update.
            _ = self.ema
        return extra

    return load_checkpoint


@contextmanager
def _no_average(settings: Any) -> Iterator[None]:
    settings.store_ema = False
    try:
        yield
    finally:
        settings.store_ema = True


def _take_up(trainer: Any, extra: dict[str, Any]) -> None:
    """Go on with the average of a checkpoint whose weights the model has."""
    ema, settings = trainer.ema, trainer.cfg.ema
    if "ema" not in extra:
        logger.info("mhe: the checkpoint has no average; it begins with the weights there are")
    else:
        # What stock fairseq saved has wrong versions, and may lack layer norms: those are the model's.
        weights = {name: value for name, value in extra["ema"].items() if not _is_version(name)}
        ema.restore({**ema.get_model().state_dict(), **weights})
        if settings.ema_fp32:
            # Of a training without --ema-fp32 there is only what is in use.
            ema.build_fp32_params(extra.get("ema_fp32_params"))
        logger.info("mhe: the average goes on from the checkpoint's")
    ema.update_freq_counter = trainer.get_num_updates() % max(settings.ema_update_freq, 1)


def _with_average(load: Callable[..., Any]) -> Callable[..., Any]:
    def load_ema_from_checkpoint(path: str) -> Any:
        """fairseq's, of a file that has an average."""
        if not os.path.isfile(path):
            raise MHEError(f"there is no checkpoint {path} to read averaged weights from")
        try:
            return load(path)
        except KeyError as error:
            raise MHEError(
                f"checkpoint {path} has no averaged weights; only a training with --store-ema saves them"
            ) from error

    return load_ema_from_checkpoint
