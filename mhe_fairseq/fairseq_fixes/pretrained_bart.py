"""``--task translation_from_pretrained_bart``: a translation fine-tuned from an mBART.

The task reads its settings as ``self.args``, and the translation task that it is made from keeps them as
``self.cfg`` only: it ends in an AttributeError when it loads its data, for fairseq's own models too.

Since fairseq 0.12, in which translation got a dataclass. Can go when the task reads ``self.cfg``.
"""

from __future__ import annotations

from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask


def install() -> None:
    """Give the task its settings by the name that it reads."""
    if not hasattr(TranslationFromPretrainedBARTTask, "args"):
        TranslationFromPretrainedBARTTask.args = property(lambda self: self.cfg)
