"""What the tasks with compact search have in common, whatever they translate or continue."""

from __future__ import annotations

from typing import Any

from fairseq.sequence_generator import SequenceGenerator

from mhe_fairseq.errors import MHEError
from mhe_fairseq.search import CompactGenerator, CompactGeneratorWithAlignment
from mhe_fairseq.tasks.allowed import allowed_of


class CompactSearchMixin:
    """Before a fairseq task. Models with a product or cascade head are searched without V-wide work, with the
    same result. No sentence that is searched, scored or validated on is left out for its place in a batch
    (``--required-batch-size-multiple``, 8 unless told, makes fairseq leave out the last ones); the batches of
    a training are fairseq's.

    The task's configuration has a ``train_subset``.
    """

    datasets: dict[str, Any]

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        kind, extra = self.compact_kind(args, seq_gen_cls, extra_gen_cls_kwargs)
        generator = super().build_generator(  # type: ignore[misc]
            models, args, kind, extra, prefix_allowed_tokens_fn
        )
        return self.restricted(generator)

    def restricted(self, generator: Any) -> Any:
        """A generator, told what ``--mhe-allowed`` says. One that scores given text is left as it is.

        Raises:
            MHEError: a file or language that has no tokens, or a generator that finds any token.
        """
        allowed = allowed_of(self)
        if allowed is not None and isinstance(generator, SequenceGenerator):
            if not isinstance(generator, CompactGenerator):
                raise MHEError(
                    f"--mhe-allowed restricts the search of this plugin, and {type(generator).__name__} "
                    "searches in its own way; leave the flag out"
                )
            generator.allowed = allowed
        return generator

    def compact_kind(
        self, args: Any, kind: Any = None, extra: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """The class of a generator, and its arguments, for the flags of a command.

        Args:
            args: of generation.
            kind: a class that was asked for by name, which is taken.
            extra: arguments of the class, not changed.

        Returns:
            The class, None: fairseq's choice; and the arguments.
        """
        extra = dict(extra or {})
        if kind is None and not getattr(args, "score_reference", False):
            kind = CompactGenerator
            if getattr(args, "print_alignment", False):
                kind = CompactGeneratorWithAlignment
                extra["print_alignment"] = args.print_alignment
        return kind, extra

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
        is_training = "epoch" in kwargs and dataset is self.datasets.get(self._train_subset())
        return super().get_batch_iterator(  # type: ignore[misc]
            dataset,
            max_tokens,
            max_sentences,
            max_positions,
            ignore_invalid_inputs,
            required_batch_size_multiple if is_training else 1,
            *args,
            **kwargs,
        )

    def _train_subset(self) -> str:
        task: Any = self
        # fairseq's older tasks have args in place of a cfg, and a cfg of None.
        subset: str = (task.args if task.cfg is None else task.cfg).train_subset
        return subset
