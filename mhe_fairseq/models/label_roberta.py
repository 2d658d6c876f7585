"""``--arch mhe_label_roberta_base`` and the like: labels from a transformer encoder, which may begin as a
masked language model of ``mhe_roberta``."""

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
from fairseq.models.roberta import RobertaModel
from torch import Tensor

from mhe_fairseq.models.classifying import leave_out_head
from mhe_fairseq.models.flags import add_head_args
from mhe_fairseq.models.labelling import LabelModel, build_label_model
from mhe_fairseq.models.roberta import OUTPUT_SIDE, MHERobertaEncoder

logger = logging.getLogger(__name__)

_EMBEDDING = "encoder.sentence_encoder.embed_tokens.weight"


@register_model("mhe_label_roberta")
class MHELabelRobertaModel(LabelModel):
    """Features are those of a document's first token, ``<s>``.

    ``--restore-file`` takes a checkpoint of ``mhe_roberta`` that was trained to predict masked tokens: its
    encoder is the beginning of this one's, what predicts tokens is left out, and the head begins anew.
    """

    def __init__(self, args: Any, dictionary: Any) -> None:
        super().__init__(args, dictionary.symbols, args.encoder_embed_dim)
        options, args.mhe_options = args.mhe_options, None
        # Without options the encoder has nothing behind it.
        self.encoder = MHERobertaEncoder(args, dictionary)
        args.mhe_options = options

    def features(self, src_tokens: Tensor) -> Tensor:
        found: Tensor = self.encoder(src_tokens, features_only=True)[0][:, 0]
        return found

    def max_positions(self) -> int:
        positions: int = self.args.max_positions
        return positions

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        RobertaModel.add_args(parser)
        add_head_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHELabelRobertaModel:
        """Raises:
        MHEError: another task, or a bad flag.
        """
        ARCH_CONFIG_REGISTRY["roberta"](args)
        args.max_positions = task.max_positions()
        return build_label_model(cls, args, task)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """As ``LabelModel``'s; of a masked language model, what it is to begin as."""
        prefix = f"{name}." if name else ""
        if prefix + "mhe_text" not in state_dict and prefix + "encoder.mhe_dictionary" in state_dict:
            side = tuple(prefix + each for each in OUTPUT_SIDE)
            leave_out_head(state_dict, prefix + "encoder.head.", [prefix + _EMBEDDING], side)
            for key in [key for key in state_dict if key.startswith(f"{prefix}classification_heads.")]:
                del state_dict[key]
            state_dict[prefix + "mhe_text"] = state_dict[prefix + "encoder.mhe_dictionary"]
            own = {f"{prefix}head.{key}": value for key, value in self.head.state_dict().items()}
            state_dict.update(own)
            logger.info("mhe: the encoder begins as the checkpoint's, the labels' head anew")
        super().upgrade_state_dict_named(state_dict, name)


for _stock in ARCH_MODEL_INV_REGISTRY["roberta"]:
    register_model_architecture("mhe_label_roberta", f"mhe_label_{_stock}")(ARCH_CONFIG_REGISTRY[_stock])
