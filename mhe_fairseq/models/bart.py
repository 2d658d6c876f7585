"""``--arch mhe_bart_base`` and the like: fairseq's BART with a multi-head encoding output layer."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.bart import BARTModel
from fairseq.models.transformer import TransformerConfig, TransformerModel
from fairseq.tasks.translation import TranslationTask
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.bart_hub import BARTHub, TranslatingBARTHub
from mhe_fairseq.models.classifying import classifies, leave_out_head
from mhe_fairseq.models.decoder import MHETransformerDecoder
from mhe_fairseq.models.flags import add_head_args
from mhe_fairseq.models.options import MASK, is_added
from mhe_fairseq.models.settings import set_options
from mhe_fairseq.models.transformer import MHETransformerModel

logger = logging.getLogger(__name__)

_HEAD = "decoder.head."
_EMBEDDINGS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
#: Of a head, what has one row for each token.
_ROWS = ("codebook_slots", "table.linear.weight")


class MHEBARTDecoder(MHETransformerDecoder):
    """``MHETransformerDecoder``; without ``mhe_options`` it has no head, for tasks that classify."""

    def build_output_projection(self, cfg: Any, dictionary: Any, embed_tokens: Any) -> None:
        if getattr(cfg, "mhe_options", None) is not None:
            super().build_output_projection(cfg, dictionary, embed_tokens)

    def get_normalized_probs_scriptable(self, *args: Any, **kwargs: Any) -> Tensor:
        """As ``HeadDecoderMixin``'s.

        Raises:
            MHEError: the model was built for a task that predicts no tokens.
        """
        if "head" not in self._modules:
            raise MHEError(
                "the model was built to classify sentences and has no output layer for tokens; load the "
                "checkpoint it was fine-tuned from"
            )
        return super().get_normalized_probs_scriptable(*args, **kwargs)


@register_model("mhe_bart")
class MHEBARTModel(MHETransformerModel, BARTModel):
    """Same flags as ``bart``, and ``--mhe-*`` for the output layer.

    For the tasks that classify sentences there is no output layer, and what a checkpoint has for it is left
    out.
    """

    def __init__(self, args: Any, encoder: Any, decoder: Any) -> None:
        # fairseq initialises as BERT, std 0.02, what it knows: nn.Linear and nn.Embedding. It would reach
        # some of a head's tables and leave others as they are. A head was measured with the initialisation
        # it has. What is tied is the embedding, with its 0.02.
        head: nn.Module | None = decoder._modules.pop("head", None)
        super().__init__(args, encoder, decoder)
        if head is not None:
            decoder.head = head
        # Of fairseq-hydra-train, whose model options do not name it; fairseq reads it when it loads.
        self.args.task = getattr(args, "task", None)

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        BARTModel.add_args(parser)
        add_head_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHEBARTModel:
        if getattr(args, "mhe_tie", None) is None:
            # fairseq's bart has one table for all, and no flag to change that: what is exported is to fit it.
            set_options(args, mhe_tie="exact")
        if classifies(task, "tokens"):
            model: MHEBARTModel = TransformerModel.build_model.__func__(cls, args, task)
            return model
        return super().build_model(args, task)

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: Any) -> MHEBARTDecoder:
        cfg = TransformerConfig.from_namespace(args)
        return MHEBARTDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> BARTHub:
        """As ``HubMixin``'s; gives what fairseq's BART gives, for the task that the model was trained for."""
        # As fairseq's: a classifier's checkpoint brings its classifiers, and a sample is a sentence.
        kwargs = {"load_checkpoint_heads": True, "sample_break_mode": "eos", **kwargs}
        return super().from_pretrained(*args, **kwargs)

    @classmethod
    def hub_interface(cls, cfg: Any, task: Any, models: list[Any]) -> BARTHub:
        kind = TranslatingBARTHub if isinstance(task, TranslationTask) else BARTHub
        return kind(cfg, task, models)

    def set_beam_size(self, beam: int) -> None:
        """Nothing. fairseq's has the attention read one source for ``beam`` rows, from the moment a generator
        is made: a training with ``--eval-bleu``, or features asked for after a search, would fail, or read
        the sources of other sentences."""

    @property
    def has_head(self) -> bool:
        """It predicts tokens."""
        return "head" in self.decoder._modules

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """As fairseq's, which leaves out the row of ``<mask>`` where the dictionary has none: here its slot,
        too.

        Raises:
            MHEError: the weights are of another model, or for other tokens.
        """
        prefix = f"{name}." if name else ""
        own = len(self.encoder.dictionary)
        rows = self._check_loaded({key.removeprefix(prefix): each for key, each in state_dict.items()})
        if not self.has_head:
            # Only what is one with the decoder's embedding has the head's rows, too.
            shared = self.encoder.embed_tokens.weight is self.decoder.embed_tokens.weight
            keys = [prefix + each for each in (_EMBEDDINGS if shared else _EMBEDDINGS[1:])]
            leave_out_head(state_dict, prefix + _HEAD, keys, (prefix + _HEAD,))
        super().upgrade_state_dict_named(state_dict, name)
        if rows == own + 1:
            for key in (prefix + _HEAD + each for each in _ROWS):
                if key in state_dict:
                    state_dict[key] = state_dict[key][:own]
            logger.info("mhe: the dictionary has no %s, the checkpoint's row and slot are left out", MASK)

    def _check_loaded(self, state: dict[str, Any]) -> int:
        """The number of tokens that a checkpoint is for."""
        is_classifier = any(key.startswith("classification_heads.") for key in state)
        if self.has_head and is_classifier and _HEAD + "codebook_slots" not in state:
            raise MHEError(
                "the checkpoint has no output head, it was fine-tuned to classify; to predict tokens, give "
                "the one it was fine-tuned from"
            )
        if any(key not in state for key in _EMBEDDINGS):
            raise MHEError("the checkpoint is of a model of another --arch, not of mhe_bart or the like")
        dictionary = self.encoder.dictionary
        rows, own = len(state[_EMBEDDINGS[0]]), len(dictionary)
        cut = rows == own + 1 and MASK not in dictionary
        if rows == own or cut:
            return rows
        added = [each for each in dictionary.symbols if is_added(each)]
        raise MHEError(
            f"the checkpoint is for {rows} tokens and the dictionary of this training has {own}, with "
            f"{len(added)} symbols such as the task adds ({' '.join(added) or 'none'}); give the dict.txt of "
            "the pretraining, and all its languages in their order (--langs); for more tokens, `mhe convert "
            "--data` makes a checkpoint of the larger dictionary"
        )


for _stock in ARCH_MODEL_INV_REGISTRY["bart"]:
    register_model_architecture("mhe_bart", f"mhe_{_stock}")(ARCH_CONFIG_REGISTRY[_stock])
