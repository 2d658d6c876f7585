"""``--arch mhe_transformer``: fairseq's transformer with a multi-head encoding output layer."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY, register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from omegaconf import OmegaConf, open_dict
from torch import Tensor

from mhe_fairseq.models.decoder import MHETransformerDecoder, TokenLoss
from mhe_fairseq.models.options import PLANNED, HeadOptions, add_head_args


@register_model("mhe_transformer")
class MHETransformerModel(TransformerModel):
    """Same flags as ``transformer``, and ``--mhe-*`` for the output layer.

    ``forward`` with ``target`` returns the loss, a ``TokenLoss``, computed inside the call: so gradients are
    reduced, parameters gathered and activations recomputed by whatever wraps the model. Without a target it
    returns features, which ``get_normalized_probs`` turns into exact probabilities.
    """

    #: Asked for by ``mhe_cross_entropy``.
    has_mhe_head = True

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        TransformerModel.add_args(parser)
        add_head_args(parser)

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHETransformerModel:
        # Checked before anything is built. `args` is what a checkpoint keeps, and the options are no part
        # of it: they hold tensors.
        if OmegaConf.is_config(args):
            # fairseq-hydra-train, and checkpoints of it: a config can hold no options, so the model is
            # built from a copy, and what was planned is written back.
            config, args = args, argparse.Namespace(**OmegaConf.to_container(args, resolve=True))
            options = HeadOptions.resolve(args, task.target_dictionary.symbols)
            with open_dict(config):
                for name in PLANNED:
                    config[name] = getattr(args, name)
        else:
            options = HeadOptions.resolve(args, task.target_dictionary.symbols)
        args.mhe_options = options
        try:
            model: MHETransformerModel = super().build_model(args, task)
        finally:
            del args.mhe_options
        if hasattr(model.cfg, "mhe_options"):
            del model.cfg.mhe_options
        return model

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: Any) -> MHETransformerDecoder:
        cfg = TransformerConfig.from_namespace(args)
        return MHETransformerDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def forward(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor,
        prev_output_tokens: Tensor,
        target: Tensor | None = None,
        smoothing: bool = False,
        accuracy: bool = False,
        **kwargs: Any,
    ) -> Any:
        """fairseq's ``forward``; with ``target`` (B, T), padded, a ``TokenLoss`` instead."""
        output = super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)
        if target is None:
            return output
        loss: TokenLoss = self.decoder.head_loss(
            output[0], target, self.decoder.padding_idx, smoothing, accuracy
        )
        return loss

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        if self.training:
            self.decoder.warn_wide_loss()
        probs: Tensor = self.decoder.get_normalized_probs(net_output, log_probs, sample)
        return probs


def _mirror(stock: str, name: str) -> None:
    """Register ``name`` with the settings of fairseq's architecture ``stock``."""
    register_model_architecture("mhe_transformer", name)(ARCH_CONFIG_REGISTRY[stock])


for _suffix in (
    "",
    "_tiny",
    "_iwslt_de_en",
    "_wmt_en_de",
    "_vaswani_wmt_en_de_big",
    "_vaswani_wmt_en_fr_big",
    "_wmt_en_de_big",
    "_wmt_en_de_big_t2t",
):
    _mirror(f"transformer{_suffix}", f"mhe_transformer{_suffix}")
