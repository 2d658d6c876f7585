"""fairseq's transformer decoder with a head in place of the output projection."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import torch
from fairseq.models.transformer import TransformerDecoderBase
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import OutputHead
from mhe_fairseq.heads.sharded.state import ShardedHead
from mhe_fairseq.models.options import HeadOptions
from mhe_fairseq.models.padding import Padded
from mhe_fairseq.models.target_count import TargetCount, kept_positions
from mhe_fairseq.models.undivided import HeldUndivided, Undivided


class TokenLoss(NamedTuple):
    """A head's loss at every position of a batch; zero where the target is padding.

    Attributes:
        nll: (B, T), -log p(target).
        smooth: (B, T), mean over the vocabulary of -log p(token), or None.
        stats: name -> sum over the tokens, detached scalars.
        tokens: number of positions that are not padding, a scalar tensor.
    """

    nll: Tensor
    smooth: Tensor | None
    stats: dict[str, Tensor]
    tokens: Tensor


class HeadDecoderMixin:
    """The output side of a decoder: ``output_layer``, normalised probabilities, the loss.

    ``forward`` gives features, (B, T, d), in place of logits. While decoding incrementally they are
    ``Undivided``: fairseq divides a decoder's output by the temperature before it asks for probabilities.
    """

    head: OutputHead
    _warned: bool = False

    def head_loss(
        self,
        features: Tensor,
        target: Tensor,
        padding: int,
        smoothing: bool,
        accuracy: bool,
        count: TargetCount | None = None,
    ) -> TokenLoss:
        """Loss of features (B, T, d) against target (B, T); padding never reaches the head.

        With a ``count`` of this target that was made before the model was called, an accelerator is not
        waited for here.
        """
        if count is None or not count.is_of(target, padding):
            count = TargetCount(target, padding)
        keep = target.ne(padding)
        index = kept_positions(keep.flatten(), count.value())
        kept = self.head_input(_rows(features, index))
        loss = self.head(
            kept, target.flatten().index_select(0, index), smoothing=smoothing, accuracy=accuracy
        )

        def placed(values: Tensor) -> Tensor:
            # It keeps the graph even when no position is kept.
            return values.new_zeros(keep.numel()).index_copy(0, index, values).view(target.shape)

        smooth = None if loss.smooth is None else placed(loss.smooth)
        stats = {name: value.sum() for name, value in loss.stats.items()}
        return TokenLoss(placed(loss.nll), smooth, stats, keep.sum())

    def head_input(self, features: Tensor) -> Tensor:
        """What the head reads, of the features that ``forward`` gives. Shape: (N, d) -> (N, d)."""
        return features

    def decoding(self, features: Tensor) -> Any:
        """What ``forward`` gives while decoding incrementally. Shape: (B, T, d) -> (B, T, d)."""
        return Undivided.of(features)

    def output_layer(self, features: Tensor, **unused: Any) -> Tensor:
        return features

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        return self.get_normalized_probs_scriptable(net_output, log_probs, sample)

    def get_normalized_probs_scriptable(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        """(B, T, V) probabilities of features (B, T, d), exact.

        With a ``sample`` in eval mode the caller is fairseq's scorer, which reads the target's column only:
        then all V columns are views of that one number, and nothing V-wide is computed.
        """
        if isinstance(self.head, ShardedHead):
            raise MHEError(
                "a head that --mhe-shard splits over ranks trains with our criterions only, and a search "
                "while it trains (--eval-bleu) would leave ranks waiting for each other; leave out one of "
                "the two"
            )
        features, temperature = net_output[0], 1.0
        if isinstance(features, (Undivided, HeldUndivided)):
            temperature = features.temperature
            features = features.plain()
        shape = features.shape[:-1]
        flat = features.reshape(-1, features.size(-1))
        if sample is not None and sample.get("target") is not None and not torch.is_grad_enabled():
            target = sample["target"].reshape(-1)
            value = self.head.log_prob(flat, target).view(*shape, 1)
            value = value if log_probs else value.exp()
            return value.expand(*shape, self.head.vocab_size)
        values = self.head.log_probs(flat)
        if temperature != 1.0:
            values = torch.log_softmax(values / temperature, dim=-1)
        values = values.view(*shape, -1)
        return values if log_probs else values.exp_()

    def warn_wide_loss(self, criterion: str) -> None:
        """Once: a criterion that reads V-wide probabilities works, at the softmax's cost."""
        if not self._warned:
            self._warned = True
            warnings.warn(
                "mhe_fairseq: this criterion reads probabilities of the whole vocabulary, which costs what a "
                f"softmax costs; --criterion {criterion} computes the same loss without them",
                stacklevel=2,
            )


class MHETransformerDecoder(HeadDecoderMixin, TransformerDecoderBase):
    """``TransformerDecoderBase`` with ``self.head``. ``cfg`` carries ``mhe_options``."""

    #: Told by the model, so that the device is not asked behind the encoder.
    padded: Padded | None = None
    cross_self_attention: bool

    def build_output_projection(self, cfg: Any, dictionary: Any, embed_tokens: Any) -> None:
        if cfg.adaptive_softmax_cutoff is not None:
            raise MHEError(
                f"--adaptive-softmax-cutoff {cfg.adaptive_softmax_cutoff} and --mhe-head are two output "
                "layers; give one of them"
            )
        if cfg.base_layers:
            raise MHEError(f"--base-layers {cfg.base_layers} is not supported with an mhe head; leave it out")
        options: HeadOptions = cfg.mhe_options
        if options.bias:
            raise MHEError(
                "--mhe-bias is for --arch mhe_roberta; fairseq's decoders have no bias, leave it out"
            )
        tied = embed_tokens if cfg.share_decoder_input_output_embed else None
        self.head = options.build(self.output_embed_dim, tied)

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: dict[str, list[Tensor]] | None = None,
        incremental_state: dict[str, dict[str, Tensor | None]] | None = None,
        features_only: bool = False,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """As fairseq's; features (B, T, d) in place of logits, ``Undivided`` when decoding."""
        features, extra = super().forward(
            prev_output_tokens, encoder_out, incremental_state, features_only=True, **kwargs
        )
        if incremental_state is not None and not features_only:
            features = self.decoding(features)
        return features, extra

    def extract_features_scriptable(
        self, prev_output_tokens: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        # Where this is set, fairseq makes the mask and does not ask for padding; it has no other use.
        before = self.cross_self_attention
        told = None if self.padded is None else self.padded.of(prev_output_tokens)
        self.cross_self_attention = before or bool(told)
        try:
            features: tuple[Tensor, dict[str, Any]] = super().extract_features_scriptable(
                prev_output_tokens, *args, **kwargs
            )
            return features
        finally:
            self.cross_self_attention = before

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> dict[str, Any]:
        """As fairseq's, which would add a projection copied from shared embeddings."""
        has_head = "head" in self._modules
        if has_head and f"{name}.head.codebook_slots" not in state_dict and f"{name}.version" in state_dict:
            raise MHEError(
                "the checkpoint has no mhe head, so it is not of this model; it was trained with another "
                "--arch, or fairseq's own model: of that, `mhe convert` makes one of this model, to "
                "train on"
            )
        super().upgrade_state_dict_named(state_dict, name)
        state_dict.pop(f"{name}.output_projection.weight", None)
        return state_dict


def _rows(features: Tensor, index: Tensor) -> Tensor:
    """Rows of (B, T, d), read as (B * T, d). Shape: (N,) long -> (N, d).

    fairseq's layers have time first, and what they give is a view of that: flattened it would be copied.
    """
    by_time = features.transpose(0, 1)
    if by_time.is_contiguous() and not features.is_contiguous():
        batch, length = features.shape[:2]
        return by_time.flatten(0, 1).index_select(0, index % length * batch + index // length)
    return features.flatten(0, 1).index_select(0, index)
