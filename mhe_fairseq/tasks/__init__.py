"""fairseq tasks with compact search; importing registers them."""

from mhe_fairseq.tasks.mhe_language_modeling import MHELanguageModelingTask
from mhe_fairseq.tasks.mhe_translation import MHETranslationTask

__all__ = ["MHELanguageModelingTask", "MHETranslationTask"]
