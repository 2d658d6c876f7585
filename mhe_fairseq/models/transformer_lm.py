"""``--arch mhe_transformer_lm``: fairseq's language model with a multi-head encoding output layer."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
import ast
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.transformer import TransformerConfig
from fairseq.models.transformer_lm import (
    DEFAULT_MAX_TARGET_POSITIONS,
    TransformerLanguageModel,
    TransformerLanguageModelConfig,
)
from fairseq.modules import AdaptiveInput, CharacterTokenEmbedder
from fairseq.utils import eval_str_list, safe_getattr

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.base import HeadModelMixin, resolved
from mhe_fairseq.models.decoder import MHETransformerDecoder
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.flags import HeadConfig, flag
from mhe_fairseq.models.hub import HubMixin

#: Settings of the output layer that a head stands in for, and what they are without it.
_ADAPTIVE_SOFTMAX = {
    "adaptive_softmax_cutoff": None,
    "tie_adaptive_weights": False,
    "tie_adaptive_proj": False,
}


@dataclass
class MHETransformerLanguageModelConfig(HeadConfig, TransformerLanguageModelConfig):
    """The flags of ``transformer_lm``, and ``--mhe-*`` for the output layer."""


@register_model("mhe_transformer_lm", dataclass=MHETransformerLanguageModelConfig)
class MHETransformerLanguageModel(HubMixin, HeadModelMixin, TransformerLanguageModel):
    """Same flags as ``transformer_lm``, and ``--mhe-*`` for the output layer."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> "MHETransformerLanguageModel":
        """fairseq's, whose decoder is written down in it, with a decoder of ours."""
        _check(args)
        if args.decoder_layers_to_keep:
            args.decoder_layers = len(args.decoder_layers_to_keep.split(","))
        if safe_getattr(args, "max_target_positions") is None:
            args.max_target_positions = safe_getattr(args, "tokens_per_sample", DEFAULT_MAX_TARGET_POSITIONS)
        with resolved(args, task.target_dictionary) as flat:
            decoder = MHETransformerDecoder(
                TransformerConfig.from_namespace(flat),
                task.target_dictionary,
                cls._input(flat, task.source_dictionary),
                no_encoder_attn=True,
            )
        return cls(decoder)

    @classmethod
    def _input(cls, args: Any, dictionary: Any) -> Any:
        """The layer that embeds the input tokens."""
        if args.character_embeddings:
            return CharacterTokenEmbedder(
                dictionary,
                ast.literal_eval(args.character_filters),
                args.character_embedding_dim,
                args.decoder_embed_dim,
                args.char_embedder_highway_layers,
            )
        if args.adaptive_input:
            return AdaptiveInput(
                len(dictionary),
                dictionary.pad(),
                args.decoder_input_dim,
                args.adaptive_input_factor,
                args.decoder_embed_dim,
                eval_str_list(args.adaptive_input_cutoff, type=int),
                args.quant_noise_pq,
                args.quant_noise_pq_block_size,
            )
        return DigitEmbedding.of(cls.build_embedding(args, dictionary, args.decoder_input_dim))


def _check(args: Any) -> None:
    """Refuse flags that a head leaves nothing to do for.

    Raises:
        MHEError: there is one.
    """
    for name in ("tie_adaptive_weights", "tie_adaptive_proj"):
        if getattr(args, name):
            raise MHEError(
                f"{flag(name)} ties an adaptive softmax to the adaptive input, and with --mhe-head there is "
                "no adaptive softmax; leave it out"
            )
    for name in ("adaptive_input", "character_embeddings"):
        if args.share_decoder_input_output_embed and getattr(args, name):
            raise MHEError(
                f"--share-decoder-input-output-embed shares a table of one row a token, and {flag(name)} has "
                "none; leave one of them out"
            )


def _mirrored(stock: Callable[[Any], None]) -> Callable[[Any], None]:
    """An architecture with the settings of fairseq's ``stock``, but for the output layer.

    Some of fairseq's architectures choose an adaptive softmax. Here the head is the output layer, so that
    choice is left out; what a user asked for stays, and is refused when the model is built.
    """

    def architecture(args: Any) -> None:
        given = {name: safe_getattr(args, name, without) for name, without in _ADAPTIVE_SOFTMAX.items()}
        stock(args)
        for name, value in given.items():
            setattr(args, name, value)

    return architecture


for _stock in ARCH_MODEL_INV_REGISTRY["transformer_lm"]:
    # The dataclass has registered the first, with its defaults.
    if _stock != "transformer_lm":
        register_model_architecture("mhe_transformer_lm", f"mhe_{_stock}")(
            _mirrored(ARCH_CONFIG_REGISTRY[_stock])
        )
