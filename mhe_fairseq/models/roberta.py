"""``--arch mhe_roberta``: fairseq's masked language model with a multi-head encoding output layer."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from fairseq import utils
from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.roberta.model import base_architecture
from fairseq.modules import LayerNorm
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from omegaconf import OmegaConf
from torch import Tensor, nn

from mhe_fairseq.coding import symbols_fingerprint
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import OutputHead
from mhe_fairseq.heads.rows.tied import MaybeTied
from mhe_fairseq.models.base import HeadModelMixin, resolved
from mhe_fairseq.models.classifying import classifies, leave_out_head
from mhe_fairseq.models.decoder import HeadDecoderMixin
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.flags import add_head_args
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.padding import MHESentenceEncoder

_EMBEDDING = "encoder.sentence_encoder.embed_tokens.weight"
_POSITIONS = "encoder.sentence_encoder.embed_positions.weight"
_DICTIONARY = "encoder.mhe_dictionary"
#: Of the state dict, what is there for masked tokens only.
OUTPUT_SIDE = ("encoder.lm_head.", "encoder.head.")

#: What a bias adds to the width of features: a 1, and zeros, so that a multiple of 8 stays one.
BIAS_WIDTH = 8


class MaskedTransform(nn.Module):
    """What fairseq has between the encoder and the projection: dense, activation, layer norm.

    Args:
        dim: d.
        activation: its name, one of fairseq's.
    """

    def __init__(self, dim: int, activation: str) -> None:
        super().__init__()
        self.dense = nn.Linear(dim, dim)
        self.activation_fn = utils.get_activation_fn(activation)
        self.layer_norm = LayerNorm(dim)
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._embedding: tuple[nn.Embedding, ...] = ()

    @property
    def weight(self) -> Tensor:
        """(V, d) of the projection behind it, where that is the shared embedding: fairseq's name for it.

        Raises:
            AttributeError: the head has rows of its own, or no table of V x d.
        """
        if not self._embedding:
            raise AttributeError("the output layer has no table of V x d that is the shared embedding")
        return self._embedding[0].weight

    def is_before(self, head: OutputHead, embedding: nn.Embedding) -> None:
        """Have ``weight``, where the head reads the embedding as its table."""
        tables = [each for each in head.modules() if isinstance(each, MaybeTied) and each.is_tied]
        if any(each.weight is embedding.weight for each in tables):
            self._embedding = (embedding,)

    def forward(self, features: Tensor) -> Tensor:
        """Shape: (..., d) -> (..., d)."""
        transformed: Tensor = self.layer_norm(self.activation_fn(self.dense(features)))
        return transformed


def with_one(features: Tensor) -> Tensor:
    """Features whose product with a row adds the row's number d to it. Shape: (..., d) -> (..., d + 8)."""
    added = features.new_zeros(*features.shape[:-1], BIAS_WIDTH)
    added[..., 0] = 1.0
    return torch.cat([features, added], dim=-1)


class MHERobertaEncoder(HeadDecoderMixin, RobertaEncoder):
    """``RobertaEncoder`` with ``self.head`` in place of projection and bias.

    ``args`` carries ``mhe_options``; without them nothing is built behind the encoder, neither ``lm_head``
    nor ``head``, for the tasks that do not predict masked tokens.

    ``mhe_dictionary`` in the state dict pins the symbols, so that a model is not fine-tuned on data of
    another dictionary unnoticed.
    """

    mhe_dictionary: Tensor
    has_bias: bool = False

    def __init__(self, args: Any, dictionary: Any) -> None:
        super().__init__(args, dictionary)
        self.padding_idx = dictionary.pad()
        # A buffer travels with the weights wherever they go.
        self.register_buffer("mhe_dictionary", dictionary_pin(dictionary.symbols[: len(dictionary)]))

    def build_embedding(self, vocab_size: int, embedding_dim: int, padding_idx: int) -> Any:
        return DigitEmbedding.of(super().build_embedding(vocab_size, embedding_dim, padding_idx))

    def build_encoder(self, args: Any, dictionary: Any, embed_tokens: Any) -> MHESentenceEncoder:
        encoder = MHESentenceEncoder(args, dictionary, embed_tokens)
        encoder.apply(init_bert_params)
        return encoder

    def build_lm_head(
        self, embed_dim: int, output_dim: int, activation_fn: str, weight: Tensor | None
    ) -> MaskedTransform | None:
        is_wanted = getattr(self.args, "mhe_options", None) is not None
        return MaskedTransform(embed_dim, activation_fn) if is_wanted else None

    def build_head(self, options: HeadOptions) -> None:
        """Make ``head``, tied to the embeddings unless ``--untie-weights-roberta`` or ``--mhe-bias``.

        Raises:
            MHEError: numbers that do not fit the model or the codebook.
        """
        self.has_bias = options.bias
        is_tied = not self.args.untie_weights_roberta and not self.has_bias
        self.head = options.build(
            self.args.encoder_embed_dim + (BIAS_WIDTH if self.has_bias else 0),
            self.sentence_encoder.embed_tokens if is_tied else None,
        )
        self.lm_head.is_before(self.head, self.sentence_encoder.embed_tokens)

    def head_input(self, features: Tensor) -> Tensor:
        transformed: Tensor = self.lm_head(features)
        return with_one(transformed) if self.has_bias else transformed

    def output_layer(self, features: Tensor, masked_tokens: Tensor | None = None, **unused: Any) -> Tensor:
        """For stock callers: exact log-probabilities, which are logits of V columns like any.

        Args:
            features: (B, T, d).
            masked_tokens: (B, T) bool, or what broadcasts to it; None for all positions.

        Returns:
            (N, V) fp32, N masked tokens, or (B, T, V).

        Raises:
            MHEError: the model was built for a task that predicts no masked tokens.
        """
        if self.lm_head is None:
            raise MHEError(
                "the model was built to classify sentences and has no output layer for masked tokens; load "
                "the checkpoint it was fine-tuned from"
            )
        if masked_tokens is not None:
            features = features[masked_tokens.expand(features.shape[:-1])]
        flat = features.reshape(-1, features.size(-1))
        return self.head.log_probs(self.head_input(flat)).view(*features.shape[:-1], -1)


@register_model("mhe_roberta")
class MHERobertaModel(HeadModelMixin, RobertaModel):
    """Same flags as ``roberta``, and ``--mhe-*`` for the output layer.

    ``forward`` with ``target`` (B, T), padding where nothing is masked, gives the loss of the masked tokens,
    a ``TokenLoss``; no other token reaches the output layer. For the tasks that classify sentences there is
    none, and what a checkpoint has for it is left out.
    """

    mhe_criterion = "mhe_masked_lm"

    def __init__(self, args: Any, encoder: MHERobertaEncoder) -> None:
        super().__init__(args, encoder)
        options = getattr(args, "mhe_options", None)
        if options is not None:
            # After fairseq's initialisation of BERT, std 0.02, which knows nn.Linear and nn.Embedding: it
            # would reach some of a head's tables and leave others as they are. A head was measured with the
            # initialisation it has. What is tied is the embedding, with its 0.02.
            encoder.build_head(options)

    @property
    def head_side(self) -> Any:
        return self.encoder

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        RobertaModel.add_args(parser)
        add_head_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHERobertaModel:
        """fairseq's, whose encoder is written down in it, with an encoder of ours."""
        is_config = OmegaConf.is_config(args)
        if is_config:
            OmegaConf.set_struct(args, False)
        base_architecture(args)
        if not utils.safe_hasattr(args, "max_positions"):
            if not utils.safe_hasattr(args, "tokens_per_sample"):
                args.tokens_per_sample = task.max_positions()
            args.max_positions = args.tokens_per_sample
        dictionary = task.source_dictionary
        if classifies(task, "masked tokens"):
            model = cls(args, MHERobertaEncoder(args, dictionary))
        else:
            with resolved(args, dictionary) as flat:
                model = cls(flat, MHERobertaEncoder(flat, dictionary))
        if is_config:
            OmegaConf.set_struct(args, True)
        return model

    def forward(
        self,
        *inputs: Any,
        target: Tensor | None = None,
        features_only: bool = False,
        classification_head_name: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """fairseq's ``forward``; with ``target`` (B, T), padded, a ``TokenLoss`` instead."""
        is_wide = target is None and not features_only and classification_head_name is None
        if is_wide and self.training:
            self.encoder.warn_wide_loss(self.mhe_criterion)
        return super().forward(
            *inputs,
            target=target,
            features_only=not is_wide,
            classification_head_name=classification_head_name,
            **kwargs,
        )

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """Of what ``forward`` gives: log-probabilities of the vocabulary, or logits of a classifier."""
        probs: Tensor = RobertaModel.get_normalized_probs(self, net_output, log_probs, sample)
        return probs

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        """As fairseq's, after a check that the weights are of this model and its dictionary.

        Raises:
            MHEError: they are not.
        """
        prefix = f"{name}." if name else ""
        self._check_loaded({key.removeprefix(prefix): value for key, value in state_dict.items()})
        state_dict[prefix + _DICTIONARY] = self.encoder.mhe_dictionary
        if self.encoder.lm_head is None:
            side = tuple(prefix + each for each in OUTPUT_SIDE)
            leave_out_head(state_dict, prefix + "encoder.head.", [prefix + _EMBEDDING], side)
        super().upgrade_state_dict_named(state_dict, name)

    def _check_loaded(self, state: dict[str, Any]) -> None:
        if _DICTIONARY not in state:
            whose = "fairseq's own roberta" if _EMBEDDING in state else "a model of another --arch"
            way = "; `mhe convert` makes one of them of it, to train on" if _EMBEDDING in state else ""
            raise MHEError(
                f"the checkpoint is of {whose}, not of mhe_roberta or one of its architectures{way}"
            )
        rows, own = len(state[_EMBEDDING]), len(self.encoder.sentence_encoder.embed_tokens.weight)
        pins = [pinned_fingerprint(pin) for pin in (state[_DICTIONARY], self.encoder.mhe_dictionary)]
        if rows != own:
            raise MHEError(
                f"the checkpoint is for {rows} tokens and the data's dictionary has {own}; binarise the data "
                "with the dict.txt that the model was pretrained with"
            )
        if pins[0] != pins[1]:
            raise MHEError(
                f"the checkpoint is for another dictionary (fingerprint {pins[0]}, the data's has {pins[1]}, "
                f"both of {rows} tokens); binarise the data with the dict.txt that the model was pretrained "
                "with"
            )
        if self.encoder.lm_head is not None and not any(key.startswith(OUTPUT_SIDE) for key in state):
            raise MHEError(
                "the checkpoint has no output head, it was fine-tuned to classify; to predict masked tokens, "
                "give the one it was fine-tuned from"
            )
        self._check_positions(state)

    def _check_positions(self, state: dict[str, Any]) -> None:
        table = self.encoder.sentence_encoder.embed_positions
        if _POSITIONS not in state or not isinstance(table, nn.Embedding):
            return
        # The first rows, up to the padding's number, are no positions.
        theirs, ours = (
            len(weight) - self.encoder.padding_idx - 1 for weight in (state[_POSITIONS], table.weight)
        )
        if theirs != ours:
            raise MHEError(
                f"the checkpoint has {theirs} positions and this model {ours}; give --max-positions {theirs}"
            )


def dictionary_pin(symbols: list[str]) -> Tensor:
    """``mhe_dictionary`` of these symbols, (4,) long. In four numbers: a mean of checkpoints that sums whole
    numbers, as fairseq's script does, would leave the range of one of 64 bits."""
    pinned = symbols_fingerprint(symbols)
    return torch.tensor([int(pinned[place : place + 4], 16) for place in range(0, len(pinned), 4)])


def pinned_fingerprint(pin: Tensor) -> str:
    """In hexadecimal digits, of ``mhe_dictionary``. In older checkpoints that is one signed number."""
    if pin.dim() == 0:
        return f"{int(pin) + 2**63:016x}"
    return "".join(f"{part:04x}" for part in pin.tolist())


for _stock in ARCH_MODEL_INV_REGISTRY["roberta"]:
    register_model_architecture("mhe_roberta", f"mhe_{_stock}")(ARCH_CONFIG_REGISTRY[_stock])
