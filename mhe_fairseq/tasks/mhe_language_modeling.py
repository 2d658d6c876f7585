"""``--task mhe_language_modeling``: fairseq's language modeling task with compact beam search."""

# No `from __future__ import annotations`: fairseq reads the types of the configuration.

from dataclasses import dataclass

from fairseq.tasks import register_task
from fairseq.tasks.language_modeling import LanguageModelingConfig, LanguageModelingTask
from omegaconf import II

from mhe_fairseq.tasks.compact import CompactSearchMixin


@dataclass
class MHELanguageModelingConfig(LanguageModelingConfig):
    """The language modeling task's."""

    train_subset: str = II("dataset.train_subset")


@register_task("mhe_language_modeling", dataclass=MHELanguageModelingConfig)
class MHELanguageModelingTask(CompactSearchMixin, LanguageModelingTask):
    """As ``language_modeling``, with the same flags, data and checkpoints."""
