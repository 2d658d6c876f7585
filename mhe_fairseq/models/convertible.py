"""What `mhe convert` takes: which checkpoints, and their output layer apart from the model under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from fairseq.models import ARCH_MODEL_REGISTRY, MODEL_REGISTRY
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state
from mhe_fairseq.models.export import EXPORTABLE
from mhe_fairseq.models.families import DICTIONARY, FAMILIES, Family
from mhe_fairseq.models.roberta import BIAS_WIDTH
from mhe_fairseq.models.shared_tables import with_embedding
from mhe_fairseq.models.source_embedding import apart
from mhe_fairseq.models.stock_options import PREFIX


@dataclass(frozen=True)
class Kind:
    """What a checkpoint is of.

    Attributes:
        family: its model, of fairseq and of ours.
        arch: the architecture it is of.
        ours: that of ours with the same settings.
        head: which of our heads it has; None: it is fairseq's own.
    """

    family: Family
    arch: str
    ours: str
    head: str | None

    @property
    def is_softmax(self) -> bool:
        """The output layer is a softmax of V x d; to another one a softmax can be fitted."""
        return self.head is None or self.head in EXPORTABLE


def kind_of(cfg: Any, name: str, wanted: str) -> Kind:
    """What a checkpoint is of.

    Args:
        cfg: its config.
        name: what to call it in an error.
        wanted: the head to convert to, one of ``HEADS``.

    Raises:
        MHEError: a model that is not converted, or not to this head.
    """
    model = cfg.model
    arch = str(getattr(model, "_name", None) or getattr(model, "arch", None))
    stock = arch.removeprefix(PREFIX)
    cls = ARCH_MODEL_REGISTRY.get(arch) or MODEL_REGISTRY.get(arch)
    for family in FAMILIES:
        if cls in (family.ours, family.stock):
            break
    else:
        raise MHEError(
            f"{name} is of --arch {arch}; convert is for transformer, transformer_lm, roberta and bart, "
            "fairseq's own and ours, and their architectures"
        )
    # An architecture is where unset options begin, and a checkpoint has all of them.
    base = next(each for each, model_cls in MODEL_REGISTRY.items() if model_cls is family.ours)
    ours = PREFIX + stock if ARCH_MODEL_REGISTRY.get(PREFIX + stock) is family.ours else base
    head = str(getattr(model, "mhe_head", None)) if cls is family.ours else None
    if head == wanted:
        raise MHEError(f"{name} has a {head} head already, there is nothing to convert")
    if wanted == "cascade" and head is not None and head not in EXPORTABLE:
        raise MHEError(
            f"{name} has a {head} head, and a cascade is made of a softmax; convert it to --head softmax "
            "first, or train one"
        )
    for option in ("adaptive_softmax_cutoff", "base_layers"):
        if head is None and getattr(model, option, None):
            shown = "--" + option.replace("_", "-")
            raise MHEError(
                f"{name} was trained with {shown} {getattr(model, option)}, so its output layer is no table "
                "of V x d; convert is for a softmax"
            )
    return Kind(family, arch, ours, head)


@dataclass(frozen=True)
class OutputLayer:
    """A softmax of V x d, and the model under it.

    Attributes:
        body: the weights of the rest, as ours has them.
        table: (V, d), or (V, d + ``BIAS_WIDTH``).
        has_bias: features are to be given to ``with_one``.
        tied: the table is the embedding of the tokens it predicts.
    """

    body: dict[str, Tensor]
    table: Tensor
    has_bias: bool
    tied: bool


def output_layer(kind: Kind, weights: Mapping[str, Tensor], name: str) -> OutputLayer:
    """Take a model's weights apart.

    Args:
        kind: the checkpoint's.
        weights: the state dict of the model, as it was built; tensors are shared.
        name: what to call the checkpoint in an error.

    Raises:
        MHEError: there is no table where it should be.
    """
    family = kind.family
    embedding = weights.get(family.embedding)
    if kind.head is None:
        table = weights.get(family.projection)
        # Of a model that was built, tied tables are one tensor. Two with the same numbers are two.
        tied = embedding is not None and table is not None and embedding.data_ptr() == table.data_ptr()
    else:
        tied = family.table not in weights
        table = embedding if tied else weights[family.table]
    if table is None or table.dim() != 2:
        raise MHEError(f"{name} has no table of V x d at {family.projection}")
    bias_name = family.projection.removesuffix("weight") + "bias"
    bias = weights.get(bias_name) if kind.head is None else None
    # Our roberta has a bias only where it is asked for.
    has_bias = (
        kind.head is not None and embedding is not None and table.size(1) == embedding.size(1) + BIAS_WIDTH
    )
    if bias is not None and bool(bias.any()):
        added = table.new_zeros(len(table), BIAS_WIDTH)
        added[:, 0] = bias
        table, has_bias, tied = torch.cat([table, added], dim=1), True, False
    left_out = (family.projection, bias_name, DICTIONARY)
    body = {
        key: value
        for key, value in (weights if tied else apart(weights)).items()
        if key not in left_out and not key.startswith(family.head)
    }
    return OutputLayer(body, table, has_bias, tied)


def fitted_layer(kind: Kind, weights: Mapping[str, Tensor], table: Tensor, has_bias: bool) -> OutputLayer:
    """A model that had another head, with a table of its own in that head's place.

    The table is not tied: the embeddings stay what the model read, with what the head added to them.

    Args:
        kind, weights: as for ``output_layer``.
        table, has_bias: as in ``OutputLayer``.
    """
    family = kind.family
    embedding = weights[family.embedding]
    as_read = with_rows_of_state(embedding, dict(weights), family.head)
    body = {
        key: value
        for key, value in apart(with_embedding(weights, embedding, as_read)).items()
        if key != DICTIONARY and not key.startswith(family.head)
    }
    return OutputLayer(body, table, has_bias, tied=False)


def as_saved(layer: OutputLayer, saved: Mapping[str, Any]) -> OutputLayer:
    """A layer of a model that was built, on the CPU and in the precision of its checkpoint's state dict."""
    usual = next(each.dtype for each in saved.values() if each.is_floating_point())
    made: dict[tuple[Any, ...], Tensor] = {}

    def as_it_was(name: str | None, tensor: Tensor) -> Tensor:
        dtype = tensor.dtype
        if tensor.is_floating_point():
            dtype = saved[name].dtype if name is not None and name in saved else usual
        # Shared tables stay shared, and are saved once.
        key = (tensor.data_ptr(), tensor.shape, dtype)
        if key not in made:
            made[key] = tensor.detach().to("cpu", dtype)
        return made[key]

    body = {name: as_it_was(name, tensor) for name, tensor in layer.body.items()}
    return OutputLayer(body, as_it_was(None, layer.table), layer.has_bias, layer.tied)
