"""``--task mhe_translation``: fairseq's translation task with compact beam search."""

# No `from __future__ import annotations`: fairseq reads the types of the configuration.

from dataclasses import dataclass, field
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from mhe_fairseq.tasks.allowed import HELP
from mhe_fairseq.tasks.compact import CompactSearchMixin


@dataclass
class MHETranslationConfig(TranslationConfig):
    """The translation task's, and what may be found."""

    mhe_allowed: Any = field(default=None, metadata={"help": HELP})


@register_task("mhe_translation", dataclass=MHETranslationConfig)
class MHETranslationTask(CompactSearchMixin, TranslationTask):
    """As ``translation``, with the same flags, data and checkpoints. Models with a product or cascade head
    are searched without V-wide work, with the same result. No sentence that is translated, scored or
    validated on is left out for its place in a batch: ``--required-batch-size-multiple``, 8 unless told,
    makes fairseq leave out the last ones. It counts in training, whose batches are ``translation``'s."""
