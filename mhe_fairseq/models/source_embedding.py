"""An encoder's embedding that is a learned linear map of the decoder's.

With ``--share-all-embeddings`` one table is what the encoder reads, what the decoder reads and what scores
tokens. In a cascade the rows that score have to tell the tokens of one group from each other, the encoder has
to tell all tokens. Here what it reads of a token is a linear map of that row, the same for all tokens, which
begins as the identity: a model copies as easily as a tied one does. What a head adds for the token's group is
added as it is. (Press and Wolf, 2017, section 4.1, have such a projection on the output side.)
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.flags import DEFAULT_HEAD

logger = logging.getLogger(__name__)

#: What the encoder's embeddings are to the decoder's, where they are shared.
TIES = ("linear", "exact")

#: In the state dict of a model whose encoder reads a map: D, and the table that is mapped.
TABLE = "encoder.embed_tokens.weight"
MAP = "encoder.embed_tokens.map"


class SourceEmbedding(nn.Embedding):
    """What another embedding gives for a token, and its row times D.

    ``weight``, the rows, is the other's. ``map`` is D, (d, d): at zero, where it begins and weight decay
    pulls it, both are one. A state dict without it is of a model in which they are.

    Args:
        shared: the other, the decoder's.
    """

    def __init__(self, shared: nn.Embedding) -> None:
        rows, dim = shared.weight.shape
        super().__init__(rows, dim, padding_idx=shared.padding_idx, _weight=shared.weight.detach())
        self.weight = shared.weight
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._shared = (shared,)
        self.map = nn.Parameter(shared.weight.new_zeros(dim, dim))

    def forward(self, input: Tensor) -> Tensor:
        """(...) long -> (..., d)."""
        read: Tensor = self._shared[0](input)
        return read + super().forward(input) @ self.map

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "map" not in state_dict:
            state_dict[prefix + "map"] = torch.zeros_like(self.map)
            logger.info(
                "mhe: the checkpoint's embeddings are tied exactly, and --mhe-tie linear goes on from there; "
                "to go on with its optimizer's state, too, give --mhe-tie exact"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def tie_of(args: Any, head: str, restored: bool) -> str | None:
    """What ``--mhe-tie`` is, or the default of a head; None: nothing is shared.

    Args:
        args: of a model.
        head: one of ``HEADS``.
        restored: they come from a checkpoint; those from before there was a choice have no map.

    Raises:
        MHEError: a map for embeddings that are not shared.
    """
    given: str | None = getattr(args, "mhe_tie", None)
    if not getattr(args, "share_all_embeddings", False):
        if given == "linear":
            raise MHEError(
                "--mhe-tie linear is for --share-all-embeddings, where encoder and decoder have one table; "
                "give that, too, or leave out --mhe-tie"
            )
        return given
    if given is None and head == "cascade" and not getattr(args, "mhe_bottleneck", None) and not restored:
        return "linear"
    return given


def encoder_embedding(args: Any, shared: Any) -> Any:
    """What the encoder reads, of the embedding that it was to share with the decoder.

    Args:
        args: of the model, with ``mhe_options`` unless it classifies.
        shared: itself returned where the two are tied exactly, or not at all.
    """
    options = getattr(args, "mhe_options", None)
    if options is not None:
        return SourceEmbedding(shared) if options.tie == "linear" else shared
    # What a checkpoint of the same flags has. Without a head's rows there is nothing to map: two tables.
    tie = tie_of(args, getattr(args, "mhe_head", None) or DEFAULT_HEAD, restored=False)
    return copy.deepcopy(shared) if tie == "linear" else shared


def check_tie(model: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Tell a checkpoint with a map that is to be loaded into a model without.

    Args:
        model: the encoder.
        state, prefix: a state dict, and of its keys.

    Raises:
        MHEError: it is so.
    """
    if prefix + MAP in state and not isinstance(model.embed_tokens, SourceEmbedding):
        raise MHEError(
            "in the checkpoint the encoder's embeddings are a linear map of the decoder's, and in this model "
            "they are not; give --share-all-embeddings and --mhe-tie linear"
        )


def apart(weights: Mapping[str, Tensor], rows: Tensor | None = None) -> Mapping[str, Tensor]:
    """The same model with two tables in place of one and a map.

    Args:
        weights: of a model; themselves returned where there is no map. Tensors are shared.
        rows: (V, d), where the table in ``weights`` is what the decoder reads: without what a head adds.
    """
    if MAP not in weights:
        return weights
    made = dict(weights)
    take_apart(made, weights[TABLE] if rows is None else rows)
    return made


def take_apart(weights: dict[str, Tensor], rows: Tensor, prefix: str = "") -> None:
    """``apart`` in place, of a state dict with a map whose keys have a prefix."""
    change = rows.float() @ weights.pop(prefix + MAP).float()
    read = weights[prefix + TABLE]
    weights[prefix + TABLE] = (read.float() + change).to(read.dtype)
