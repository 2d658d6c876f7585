"""``--mhe-exact-last``, ``--mhe-exact-after``: fairseq's trainer tells sampling heads when to be exact.

It is told anew before each update, from the number of updates and the place in the epoch alone. So a training
that goes on from a checkpoint does what one without a break does, and all ranks change in the same update.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from fairseq.trainer import Trainer

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap
from mhe_fairseq.heads import SamplingHead
from mhe_fairseq.heads.sampling.exact_end import ExactEnd

logger = logging.getLogger(__name__)


def install() -> None:
    """Have fairseq's trainer do so. A model without such a head is trained as ever."""
    wrap(Trainer, "get_train_iterator", _remembered)
    wrap(Trainer, "train_step", _told)


def check_end(end: ExactEnd, optimization: Any) -> None:
    """Refuse a share of a training of no known length.

    Raises:
        MHEError: ``--mhe-exact-last`` was given with neither of the flags that say where the training ends.
    """
    if end.needs_an_end and end.is_asked and not (optimization.max_update or optimization.max_epoch):
        raise MHEError(
            f"--mhe-exact-last {end.share:g} is a share of the training's updates, and neither --max-update "
            "nor --max-epoch says how many there are; give one of them, or --mhe-exact-after N"
        )


def _heads(trainer: Any) -> list[tuple[SamplingHead, ExactEnd]]:
    """Those that change, kept in the trainer."""
    found: list[tuple[SamplingHead, ExactEnd]] | None = getattr(trainer, "_mhe_exact_ends", None)
    if found is None:
        heads = [module for module in trainer._model.modules() if isinstance(module, SamplingHead)]
        found = trainer._mhe_exact_ends = [
            (head, head.exact_end) for head in heads if head.exact_end is not None
        ]
    return found


def _epochs_done(trainer: Any) -> Fraction | None:
    """After the update whose batches have been read."""
    batches = getattr(trainer, "_mhe_batches", None)
    if batches is None:
        return None
    return batches.epoch - 1 + Fraction(batches.iterations_in_epoch, max(1, len(batches)))


# ---- wrappers


def _remembered(method: Callable[..., Any]) -> Callable[..., Any]:
    def get_train_iterator(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Before data are read, or anything is trained.
        for _, end in _heads(self):
            check_end(end, self.cfg.optimization)
        self._mhe_batches = method(self, *args, **kwargs)
        return self._mhe_batches

    return get_train_iterator


def _told(method: Callable[..., Any]) -> Callable[..., Any]:
    def train_step(self: Any, *args: Any, **kwargs: Any) -> Any:
        for head, end in _heads(self):
            ends = {name: getattr(self.cfg.optimization, name) or 0 for name in ("max_update", "max_epoch")}
            updates = self.get_num_updates()
            is_exact = end.includes(updates, _epochs_done(self) if ends["max_epoch"] else None, **ends)
            if is_exact and not head.exact:
                rows = f"{head.chunk} rows of logits at a time" if head.chunk else "all logits at once"
                logger.info(
                    "mhe: exact softmax from update %s on: %s; %s", updates + 1, end.describe(**ends), rows
                )
            head.exact = is_exact
        return method(self, *args, **kwargs)

    return train_step
