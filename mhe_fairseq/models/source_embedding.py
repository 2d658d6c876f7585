"""An encoder's embedding that is a learned linear map of the decoder's.

With ``--share-all-embeddings`` one table is what the encoder reads, what the decoder reads and what scores
tokens, and a model translates worse than where the encoder is free; most of all with a cascade, whose rows
have to tell the tokens of one group from each other. Here what the encoder reads of a token is what the
decoder reads up to a linear map, the same for all tokens, which begins as the identity: a model copies as
easily as a tied one does. (Press and Wolf, 2017, section 4.1, have such a projection on the output side.)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError

logger = logging.getLogger(__name__)

#: What the encoder's embeddings are to the decoder's, where they are shared.
TIES = ("linear", "exact")

#: Heads for which that is linear by default. The softmax is fairseq's.
MAPPED = ("cascade", "sampling")

#: In the state dict of a model whose encoder reads a map: D, and the table that is mapped.
TABLE = "encoder.embed_tokens.weight"
MAP = "encoder.embed_tokens.map"


class SourceEmbedding(nn.Embedding):
    """tokens -> e (I + D), of e what another embedding gives.

    ``weight`` is the other's. ``map`` is D, (d, d): at zero, where it begins and weight decay pulls it, both
    are one. A state dict without it is of a model in which they are.

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
        return read + read @ self.map

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


def tie_given(args: Any) -> str | None:
    """What ``--mhe-tie`` is in a model's options, None: not given.

    Raises:
        MHEError: a map for embeddings that are not shared.
    """
    given: str | None = getattr(args, "mhe_tie", None)
    if given == "linear" and not getattr(args, "share_all_embeddings", False):
        raise MHEError(
            "--mhe-tie linear is for --share-all-embeddings, where encoder and decoder have one table; "
            "give that, too, or leave out --mhe-tie"
        )
    return given


def tie_of(args: Any, head: str, restored: bool) -> str | None:
    """What ``--mhe-tie`` is, or the default of a head; None: exact, where there is something to tie.

    Args:
        args: of a model.
        head: one of ``HEADS``.
        restored: they come from a checkpoint; those from before there was a choice have no map.

    Raises:
        MHEError: as ``tie_given``.
    """
    given = tie_given(args)
    has_tie = getattr(args, "share_all_embeddings", False) and not getattr(args, "mhe_bottleneck", None)
    if given is None and has_tie and head in MAPPED and not restored:
        return "linear"
    return given


def encoder_embedding(args: Any, shared: Any) -> Any:
    """What the encoder reads, of the embedding that it was to share with the decoder.

    Args:
        args: of the model, as planned.
        shared: itself returned where the two are tied exactly, or not at all.

    Raises:
        MHEError: as ``tie_given``.
    """
    return SourceEmbedding(shared) if tie_given(args) == "linear" else shared


def check_tie(encoder: nn.Module, state: Mapping[str, Any], prefix: str) -> None:
    """Tell a checkpoint with a map that is to be loaded into a model without.

    Args:
        encoder: of the model.
        state, prefix: a state dict, and of its keys.

    Raises:
        MHEError: it is so.
    """
    if prefix + MAP in state and not isinstance(encoder.embed_tokens, SourceEmbedding):
        raise MHEError(
            "in the checkpoint the encoder's embeddings are a linear map of the decoder's, and in this model "
            "they are not; give --share-all-embeddings and --mhe-tie linear"
        )


def apart(weights: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The same model with two tables in place of one and a map.

    Args:
        weights: of a model whose table has what a head adds to it; themselves returned where there is no map.
            Tensors are shared.
    """
    if MAP not in weights:
        return weights
    made = dict(weights)
    wide = weights[TABLE].float()
    made[TABLE] = (wide + wide @ made.pop(MAP).float()).to(weights[TABLE].dtype)
    return made
