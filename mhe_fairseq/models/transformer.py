"""``--arch mhe_transformer``: fairseq's transformer with a multi-head encoding output layer."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import ARCH_CONFIG_REGISTRY, register_model, register_model_architecture
from fairseq.models.transformer import TransformerConfig, TransformerModel
from torch import Tensor

from mhe_fairseq.models.base import HeadModelMixin, resolved
from mhe_fairseq.models.decoder import MHETransformerDecoder
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.flags import add_head_args
from mhe_fairseq.models.hub import HubMixin
from mhe_fairseq.models.padding import MHETransformerEncoder, ask
from mhe_fairseq.models.source_embedding import check_tie, encoder_embedding


@register_model("mhe_transformer")
class MHETransformerModel(HubMixin, HeadModelMixin, TransformerModel):
    """Same flags as ``transformer``, and ``--mhe-*`` for the output layer."""

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        TransformerModel.add_args(parser)
        add_head_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHETransformerModel:
        with resolved(args, task.target_dictionary) as flat:
            model: MHETransformerModel = super().build_model(flat, task)
        if hasattr(model.cfg, "mhe_options"):
            del model.cfg.mhe_options
        return model

    @classmethod
    def build_embedding(cls, args: Any, dictionary: Any, embed_dim: int, path: str | None = None) -> Any:
        return DigitEmbedding.of(super().build_embedding(args, dictionary, embed_dim, path))

    @classmethod
    def build_encoder(cls, args: Any, src_dict: Any, embed_tokens: Any) -> MHETransformerEncoder:
        cfg = TransformerConfig.from_namespace(args)
        return MHETransformerEncoder(cfg, src_dict, encoder_embedding(cfg, embed_tokens))

    @classmethod
    def build_decoder(cls, args: Any, tgt_dict: Any, embed_tokens: Any) -> MHETransformerDecoder:
        cfg = TransformerConfig.from_namespace(args)
        return MHETransformerDecoder(cfg, tgt_dict, embed_tokens, no_encoder_attn=cfg.no_cross_attention)

    def upgrade_state_dict_named(self, state_dict: dict[str, Any], name: str) -> None:
        check_tie(self.encoder, state_dict, f"{name}." if name else "")
        super().upgrade_state_dict_named(state_dict, name)

    def forward(  # type: ignore[override]
        self, src_tokens: Tensor, src_lengths: Any, prev_output_tokens: Tensor, **kwargs: Any
    ) -> Any:
        encoder, decoder = self.encoder, self.decoder
        encoder.padded, decoder.padded = ask(
            (src_tokens, encoder.padding_idx), (prev_output_tokens, decoder.padding_idx)
        )
        try:
            return super().forward(src_tokens, src_lengths, prev_output_tokens, **kwargs)
        finally:
            encoder.padded = decoder.padded = None


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
