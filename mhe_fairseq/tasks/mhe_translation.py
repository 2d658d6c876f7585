"""``--task mhe_translation``: fairseq's translation task with compact beam search."""

# No `from __future__ import annotations`: fairseq reads the types of the configuration.

from dataclasses import dataclass
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.translation import TranslationConfig, TranslationTask

from mhe_fairseq.search import CompactGenerator, CompactGeneratorWithAlignment


@dataclass
class MHETranslationConfig(TranslationConfig):
    """The translation task's."""


@register_task("mhe_translation", dataclass=MHETranslationConfig)
class MHETranslationTask(TranslationTask):
    """As ``translation``, with the same flags and data. Models with a product or cascade head are searched
    without V-wide work, with the same result; no sentence is left out for its place in a batch (fairseq's
    ``--required-batch-size-multiple``, 8 unless told, leaves out the last ones)."""

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        extra = dict(extra_gen_cls_kwargs or {})
        if seq_gen_cls is None and not getattr(args, "score_reference", False):
            seq_gen_cls = CompactGenerator
            if getattr(args, "print_alignment", False):
                seq_gen_cls = CompactGeneratorWithAlignment
                extra["print_alignment"] = args.print_alignment
        return super().build_generator(models, args, seq_gen_cls, extra, prefix_allowed_tokens_fn)

    def get_batch_iterator(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["required_batch_size_multiple"] = 1
        return super().get_batch_iterator(*args, **kwargs)
