"""What of fairseq's training for quantised weights goes together with a head.

fairseq quantises what it finds by class: linear layers, embeddings, convolutions. It does so in three ways.

- ``--quant-noise-pq`` drops blocks of the weights of layers. fairseq gives this noise to the layers of
  encoder and decoder and to an adaptive softmax, not to an output projection; so a head has none, either.
- ``--quantization-config-path`` puts centroids in place of the weights of layers that a file names. A head,
  and the embeddings that it reads or adds rows to, are read row by row and cannot be replaced.
- ``--quant-noise-scalar`` puts another class in place of every layer at once, and is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fairseq import quantization_utils
from fairseq.modules.quantization import pq
from torch import nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.fairseq_fixes import wrap
from mhe_fairseq.heads import OutputHead
from mhe_fairseq.models.digit_embedding import DigitEmbedding
from mhe_fairseq.models.source_embedding import SourceEmbedding

#: Modules whose weights are read row by row.
_READ_BY_ROW = (OutputHead, DigitEmbedding, SourceEmbedding)


def install() -> None:
    """Take the place of fairseq's functions, for models with a head or with embeddings of ours."""
    wrap(quantization_utils, "quantize_model_scalar", _refused)
    wrap(pq, "quantize_model_", _checked)


@contextmanager
def blocks_told(args: Any) -> Iterator[None]:
    """While a model is built, say in one sentence that ``--quant-noise-pq-block-size`` does not fit it.

    Raises:
        MHEError: it does not divide one of them.
    """
    try:
        yield
    except AssertionError as error:
        if "block size" not in str(error):
            raise
        sides = ("encoder_embed_dim", "encoder_ffn_embed_dim", "decoder_embed_dim", "decoder_ffn_embed_dim")
        widths = sorted({value for name in sides if (value := getattr(args, name, None))})
        raise MHEError(
            f"--quant-noise-pq-block-size {args.quant_noise_pq_block_size} must divide the widths of the "
            f"layers, which are {', '.join(map(str, widths))}"
        ) from error


def _refused(quantize: Callable[..., Any]) -> Callable[..., Any]:
    def quantize_model_scalar(model: nn.Module, model_cfg: Any) -> Any:
        noise = getattr(model_cfg, "quant_noise_scalar", 0) or 0
        if noise > 0 and _kept_rows(model):
            raise MHEError(
                f"--quant-noise-scalar {noise} replaces every layer of a model, and the rows of an mhe head "
                "and of its embeddings cannot be replaced; leave it out, or give --quant-noise-pq, which "
                "does not touch them"
            )
        return quantize(model, model_cfg)

    return quantize_model_scalar


def _checked(quantize: Callable[..., Any]) -> Callable[..., Any]:
    def quantize_model_(
        model: nn.Module,
        size_tracker: Any,
        layers_to_quantize: list[str],
        block_sizes_config: dict[str, Any],
        n_centroids_config: dict[str, Any],
        step: int = 0,
        **settings: Any,
    ) -> Any:
        layers = pq.utils.get_layers(model, layers_to_quantize[step], settings.get("remove_weights", False))
        kept = _kept_rows(model)
        wrong = [name for name in layers if any(_is_part(name, other) for other in kept)]
        if wrong:
            raise MHEError(
                f"--quantization-config-path: layers_to_quantize '{layers_to_quantize[step]}' takes in "
                f"{', '.join(wrong)}, and the rows of an mhe head and of its embeddings cannot be replaced "
                "by centroids; name layers of the encoder and the decoder only"
            )
        return quantize(
            model,
            size_tracker,
            layers_to_quantize,
            block_sizes_config,
            n_centroids_config,
            step=step,
            **settings,
        )

    return quantize_model_


def _kept_rows(model: nn.Module) -> list[str]:
    """Names of heads and of embeddings of our models."""
    return [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, _READ_BY_ROW)
    ]


def _is_part(name: str, other: str) -> bool:
    return name == other or name.startswith(f"{other}.")
