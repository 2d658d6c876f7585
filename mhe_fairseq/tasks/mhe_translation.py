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
    """As ``translation``, with the same flags, data and checkpoints. Models with a product or cascade head
    are searched without V-wide work, with the same result. No sentence that is translated, scored or
    validated on is left out for its place in a batch: ``--required-batch-size-multiple``, 8 unless told,
    makes fairseq leave out the last ones. It counts in training, whose batches are ``translation``'s."""

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

    def get_batch_iterator(
        self,
        dataset: Any,
        max_tokens: int | None = None,
        max_sentences: int | None = None,
        max_positions: Any = None,
        ignore_invalid_inputs: bool = False,
        required_batch_size_multiple: int = 1,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Only a training counts epochs of its training set; the set may be translated, too.
        is_training = "epoch" in kwargs and dataset is self.datasets.get(self.cfg.train_subset)
        return super().get_batch_iterator(
            dataset,
            max_tokens,
            max_sentences,
            max_positions,
            ignore_invalid_inputs,
            required_batch_size_multiple if is_training else 1,
            *args,
            **kwargs,
        )
