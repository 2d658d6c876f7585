"""What the models with a head have in common, whatever is below the head."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from mhe_fairseq.fairseq_fixes.precision import check_precision
from mhe_fairseq.models.agreement import agreed
from mhe_fairseq.models.decoder import TokenLoss
from mhe_fairseq.models.options import PLANNED, HeadOptions
from mhe_fairseq.models.quantization import blocks_told
from mhe_fairseq.models.signature import sign
from mhe_fairseq.models.target_count import TargetCount

#: Files that a training began with. A checkpoint holds what became of them; fairseq would read them again,
#: and they need not be where the model is used.
STARTED_FROM = ("encoder_embed_path", "decoder_embed_path")


class HeadModelMixin:
    """Before a fairseq model whose ``decoder`` (or what ``head_side`` says) is a ``HeadDecoderMixin``.

    ``forward`` with ``target`` returns the loss, a ``TokenLoss``, computed inside the call: so gradients are
    reduced, parameters gathered and activations recomputed by whatever wraps the model. Without a target it
    returns features, which ``get_normalized_probs`` turns into exact probabilities.
    """

    #: Asked for by our criterions.
    has_mhe_head = True
    #: Which of them trains models of this kind.
    mhe_criterion = "mhe_cross_entropy"

    decoder: Any
    training: bool

    @property
    def head_side(self) -> Any:
        """The ``HeadDecoderMixin``."""
        return self.decoder

    @classmethod
    def hub_models(cls) -> dict[str, Any]:
        return {}

    def forward(
        self,
        *inputs: Tensor,
        target: Tensor | None = None,
        smoothing: bool = False,
        accuracy: bool = False,
        count: TargetCount | None = None,
        **kwargs: Any,
    ) -> Any:
        """fairseq's ``forward``; with ``target`` (B, T), padded, a ``TokenLoss`` instead. ``count``: how many
        targets there are, if the caller began to count them before."""
        output = super().forward(*inputs, **kwargs)  # type: ignore[misc]
        if target is None:
            return output
        side = self.head_side
        loss: TokenLoss = side.head_loss(output[0], target, side.padding_idx, smoothing, accuracy, count)
        return loss

    def get_normalized_probs(
        self, net_output: tuple[Tensor, Any], log_probs: bool, sample: dict[str, Any] | None = None
    ) -> Tensor:
        if self.training:
            self.head_side.warn_wide_loss(self.mhe_criterion)
        probs: Tensor = self.head_side.get_normalized_probs(net_output, log_probs, sample)
        return probs

    def prepare_for_inference_(self, cfg: Any) -> None:
        """fairseq's, and ``--bf16`` of the commands that search and score, which fairseq knows for fp16 only.

        A hub gives the settings of the training, which name no ``--path``: its models stay in fp32.

        Raises:
            MHEError: a precision that the device cannot compute in.
        """
        if cfg.common_eval.path is not None:
            check_precision(cfg.common)
            if cfg.common.bf16:
                self.to(torch.bfloat16)  # type: ignore[attr-defined]
        super().prepare_for_inference_(cfg)  # type: ignore[misc]


@contextmanager
def resolved(args: Any, dictionary: Any) -> Iterator[Any]:
    """Check a model's flags before anything is built; gives them flat, with ``mhe_options``.

    What was planned is written back into ``args``, which checkpoints keep. The options are no part of that:
    they hold tensors.

    Args:
        args: as fairseq gives them to ``build_model``.
        dictionary: of the targets.
    """
    # A dictionary cut short by --output-dictionary-size still lists all symbols.
    symbols = dictionary.symbols[: len(dictionary)]
    if OmegaConf.is_config(args):
        # A config can hold no options, so the model is built from a copy.
        configs, args = _kept(args), argparse.Namespace(**OmegaConf.to_container(args, resolve=True))
        options = agreed(lambda: HeadOptions.resolve(args, symbols))
        _keep_in(configs, args, PLANNED)
        # What the model's config alone does not know, its parent knows.
        sign(args, options, configs[0])
        _keep_in(configs, args, ("mhe_signature",))
    else:
        options = agreed(lambda: HeadOptions.resolve(args, symbols))
        sign(args, options, args)
    if options.restored:
        for name in STARTED_FROM:
            if getattr(args, name, None):
                setattr(args, name, None)
    args.mhe_options = options
    try:
        with blocks_told(args):
            yield args
    finally:
        del args.mhe_options


def _keep_in(configs: list[DictConfig], args: argparse.Namespace, names: tuple[str, ...]) -> None:
    for config in configs:
        with open_dict(config):
            for name in names:
                config[name] = getattr(args, name)


def _kept(config: DictConfig) -> list[DictConfig]:
    """A model's config, and the one that a checkpoint keeps where that is another: for ``--arch`` by the name
    of a dataclass's model, fairseq builds from a merged copy that has the parent of what it is a copy of."""
    parent = config._get_parent()
    kept = parent.get("model") if isinstance(parent, DictConfig) else None
    is_copied = isinstance(kept, DictConfig) and kept is not config and kept.get("_name") == config["_name"]
    return [config, kept] if is_copied else [config]
