"""``--arch mhe_label_bag``: labels from a bag of embeddings, the usual small and fast body."""

from __future__ import annotations

import argparse
from typing import Any

from fairseq.models import register_model, register_model_architecture
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.bag import BagOfEmbeddings
from mhe_fairseq.models.flag_values import whole_of
from mhe_fairseq.models.flags import add_head_args, flag
from mhe_fairseq.models.labelling import LabelModel, build_label_model

#: name -> least value, help.
_SIZES = {
    "mhe_bag_dim": (1, "width of the embeddings (default: 256)"),
    "mhe_bag_width": (
        1,
        "width of the layers behind them, and of the features (default: --mhe-bag-dim)",
    ),
    "mhe_bag_layers": (0, "number of these layers (default: 0)"),
    "mhe_pair_buckets": (
        0,
        "embeddings that pairs of neighbouring tokens share by a hash, 0: pairs are not read (default: "
        "65536)",
    ),
}


@register_model("mhe_label_bag")
class MHELabelBagModel(LabelModel):
    """Features are those of ``BagOfEmbeddings``."""

    def __init__(self, args: Any, dictionary: Any) -> None:
        sizes = {name: whole_of(args, name, least) for name, (least, _) in _SIZES.items()}
        super().__init__(args, dictionary.symbols, args.mhe_bag_width)
        dim, width = sizes["mhe_bag_dim"] or 1, sizes["mhe_bag_width"] or 1
        if not sizes["mhe_bag_layers"] and width != dim:
            raise MHEError(
                f"without a layer features are as wide as embeddings: --mhe-bag-width {width} and "
                f"--mhe-bag-dim {dim} differ; give one of them, or --mhe-bag-layers 1"
            )
        if not 0.0 <= args.dropout < 1.0:
            raise MHEError(f"--dropout must be at least 0 and below 1, got {args.dropout:g}")
        self.body = BagOfEmbeddings(
            len(dictionary),
            dictionary.nspecial,
            dictionary.pad(),
            sizes["mhe_pair_buckets"] or 0,
            dim,
            width,
            sizes["mhe_bag_layers"] or 0,
            args.dropout,
        )

    def features(self, src_tokens: Tensor) -> Tensor:
        found: Tensor = self.body(src_tokens)
        return found

    @staticmethod
    def add_args(parser: argparse.ArgumentParser) -> None:
        for name, (_, text) in _SIZES.items():
            parser.add_argument(flag(name), type=int, metavar="N", help=text)
        parser.add_argument("--dropout", type=float, metavar="P", help="dropout (default: 0.3)")
        add_head_args(parser)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> MHELabelBagModel:
        """Raises:
        MHEError: another task, or a bad flag.
        """
        label_bag(args)
        return build_label_model(cls, args, task)


def _default(args: Any, name: str, value: Any) -> None:
    if getattr(args, name, None) is None:
        setattr(args, name, value)


@register_model_architecture("mhe_label_bag", "mhe_label_bag")
def label_bag(args: Any) -> None:
    """256 wide, pairs in 65,536 rows."""
    _default(args, "mhe_bag_dim", 256)
    _default(args, "mhe_bag_width", args.mhe_bag_dim)
    _default(args, "mhe_bag_layers", 0)
    _default(args, "mhe_pair_buckets", 65536)
    _default(args, "dropout", 0.3)


@register_model_architecture("mhe_label_bag", "mhe_label_bag_tiny")
def label_bag_tiny(args: Any) -> None:
    """For tests: 32 wide."""
    _default(args, "mhe_bag_dim", 32)
    _default(args, "mhe_pair_buckets", 512)
    label_bag(args)
