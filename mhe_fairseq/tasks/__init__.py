"""fairseq tasks with compact search, and of documents with labels; importing registers them."""

from mhe_fairseq.tasks.mhe_language_modeling import MHELanguageModelingTask
from mhe_fairseq.tasks.mhe_multilabel import MHEMultilabelTask
from mhe_fairseq.tasks.mhe_translation import MHETranslationTask
from mhe_fairseq.tasks.mhe_translation_from_pretrained_bart import MHETranslationFromPretrainedBARTTask
from mhe_fairseq.tasks.mhe_translation_multi_simple_epoch import MHETranslationMultiSimpleEpochTask

__all__ = [
    "MHELanguageModelingTask",
    "MHEMultilabelTask",
    "MHETranslationFromPretrainedBARTTask",
    "MHETranslationMultiSimpleEpochTask",
    "MHETranslationTask",
]
