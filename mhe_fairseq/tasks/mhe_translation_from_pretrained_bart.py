"""``--task mhe_translation_from_pretrained_bart``: mBART fine-tuned, with compact beam search."""

from __future__ import annotations

from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationTask
from fairseq.tasks.translation_from_pretrained_bart import TranslationFromPretrainedBARTTask

from mhe_fairseq.tasks.compact import CompactSearchMixin


class _AnyGenerator(TranslationFromPretrainedBARTTask):
    """fairseq's, whose own ``build_generator`` knows a beam search only."""

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        if getattr(args, "score_reference", False):
            return super().build_generator(models, args)
        # A sentence ends with the symbol of its language, and so begins.
        end = self.tgt_dict.index(f"[{self.args.target_lang}]")
        extra = {**(extra_gen_cls_kwargs or {}), "eos": end}
        return TranslationTask.build_generator(
            self, models, args, seq_gen_cls, extra, prefix_allowed_tokens_fn
        )


@register_task("mhe_translation_from_pretrained_bart")
class MHETranslationFromPretrainedBARTTask(CompactSearchMixin, _AnyGenerator):
    """As ``translation_from_pretrained_bart``, with the same flags, data and checkpoints, and with fairseq's
    other searches too (``--sampling``, ``--diverse-beam-groups``, ...)."""
