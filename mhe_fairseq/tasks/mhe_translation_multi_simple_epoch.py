"""``--task mhe_translation_multi_simple_epoch``: many languages in one model, with compact beam search."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from fairseq.tasks import register_task
from fairseq.tasks.translation_multi_simple_epoch import TranslationMultiSimpleEpochTask

from mhe_fairseq.errors import MHEError
from mhe_fairseq.tasks.allowed import HELP
from mhe_fairseq.tasks.compact import CompactSearchMixin
from mhe_fairseq.tasks.languages import (
    check_files,
    check_known,
    check_pairs_have_data,
    check_same,
    read_languages,
    read_pairs,
)

logger = logging.getLogger(__name__)


@register_task("mhe_translation_multi_simple_epoch")
class MHETranslationMultiSimpleEpochTask(CompactSearchMixin, TranslationMultiSimpleEpochTask):
    """As ``translation_multi_simple_epoch``, with the same flags, data and checkpoints; and it serves
    fairseq's hub interface, which the stock task does not."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        """fairseq's, and ``--mhe-allowed``."""
        TranslationMultiSimpleEpochTask.add_args(parser)
        parser.add_argument("--mhe-allowed", metavar="FILE|lang", help=HELP)

    @classmethod
    def setup_task(cls, args: argparse.Namespace, **kwargs: Any) -> MHETranslationMultiSimpleEpochTask:
        """As fairseq's.

        Raises:
            MHEError: pairs, languages or dictionaries that are missing or do not fit.
        """
        pairs = read_pairs(args.lang_pairs)
        langs = read_languages(args.langs, args.lang_dict, pairs)
        asked = pairs
        if args.source_lang is not None or args.target_lang is not None:
            if args.source_lang is None or args.target_lang is None:
                raise MHEError(
                    f"one of two languages is given, --source-lang {args.source_lang} --target-lang "
                    f"{args.target_lang}; a translation needs both, a training none"
                )
            asked = [f"{args.source_lang}-{args.target_lang}"]
        check_known(asked, langs)
        if args.fixed_dictionary is None:
            sides = [pair.split("-") for pair in asked]
            wanted = {pair[0] for pair in sides} if args.source_dict is None else set()
            wanted |= {pair[1] for pair in sides} if args.target_dict is None else set()
            check_files(args.data, wanted)
        task: MHETranslationMultiSimpleEpochTask = super().setup_task(args, **kwargs)
        return task

    def check_dicts(self, dicts: dict[str, Any], source_langs: list[str], target_langs: list[str]) -> None:
        for side, langs, given in (
            ("source", source_langs, self.args.source_dict),
            ("target", target_langs, self.args.target_dict),
        ):
            if given is None:
                check_same({lang: dicts[lang] for lang in langs}, side)

    def load_dataset(self, split: str, epoch: int = 1, combine: bool = False, **kwargs: Any) -> None:
        """As fairseq's; a split may be read again.

        Raises:
            MHEError: a pair has no text.
        """
        manager = self.data_manager
        _, pairs = manager.get_data_paths_and_lang_pairs(split)
        wanted = [f"{category}:{pair}" for category, of in pairs.items() for pair in of if "-" in pair]
        check_pairs_have_data(split, self.args.data, wanted, manager.get_split_num_data_shards(split))
        if split in self.datasets and not self.has_sharded_data(split):
            # fairseq's stumbles over a split that it has read already.
            del self.datasets[split]
        super().load_dataset(split, epoch, combine, **kwargs)

    def build_model(self, args: Any, from_checkpoint: bool = False) -> Any:
        """As fairseq's; a checkpoint keeps the list of languages, for ``other_languages``."""
        if not from_checkpoint:
            args.mhe_langs = list(self.langs)
        return super().build_model(args, from_checkpoint)

    def build_generator(
        self,
        models: Any,
        args: Any,
        seq_gen_cls: Any = None,
        extra_gen_cls_kwargs: dict[str, Any] | None = None,
        prefix_allowed_tokens_fn: Any = None,
    ) -> Any:
        """As fairseq's, which takes no class and no function.

        Raises:
            MHEError: it is not known which language to translate into.
        """
        if self.args.target_lang is None:
            raise MHEError(
                f"this task has the pairs {','.join(self.lang_pairs)}; say which one to translate, with "
                "--source-lang and --target-lang (source_lang= and target_lang= of from_pretrained)"
            )
        kind, extra = self.compact_kind(args, seq_gen_cls, extra_gen_cls_kwargs)
        if self.unsaid:
            extra["symbols_to_strip_from_output"] = self.unsaid
        # Past the stock task's, which would drop the class.
        generator = super(TranslationMultiSimpleEpochTask, self).build_generator(
            models, args, kind, extra, prefix_allowed_tokens_fn
        )
        return self.restricted(generator)

    @property
    def unsaid(self) -> set[int]:
        """Tokens that hypotheses begin with and that are no part of the text."""
        _, spec = self.args.langtoks["main"]
        if not spec or self.args.keep_inference_langtok:
            return set()
        return {self.data_manager.get_decoder_langtok(self.args.target_lang, spec)}
