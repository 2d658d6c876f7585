"""Input embeddings that are a learned linear map of an output layer's rows of tokens.

A tied output layer has one table for both sides. What the model reads of a token and what scores it need not
be the same numbers, though, and in a cascade they had better not be: its rows tell the tokens of a group from
each other, the input embeddings tell all tokens. Here the one is the other up to a linear map, the same for
all tokens, which begins as the identity: a model copies as easily as a tied one does. (Press and Wolf, 2017,
section 4.1, have such a projection on the output side.)
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: In the state dict of a head whose input embeddings are mapped.
MAP = "input_map.weight"


class InputMap(nn.Module):
    """x -> x + x D.

    ``weight`` is D, (d, d): at zero, where it begins and weight decay pulls it, rows are tied exactly. A
    state dict without it is of a model that is tied so.

    Args:
        dim: d.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim, dim))

    def forward(self, rows: Tensor) -> Tensor:
        """Rows of tokens -> what is read of them. Shape: (..., d) -> (..., d)."""
        return rows + rows @ self.weight

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        if prefix + "weight" not in state_dict:
            state_dict[prefix + "weight"] = torch.zeros_like(self.weight)
            logger.info(
                "mhe: the checkpoint's embeddings are tied exactly, and --mhe-tie linear goes on from there; "
                "to go on with its optimizer's state, too, give --mhe-tie exact"
            )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def mapped(rows: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    """As ``InputMap.forward``, of a saved head. Shape: (V, d) -> (V, d).

    Args:
        rows: themselves returned where the head has no map.
        state: a state dict.
        prefix: of the head's keys, such as "encoder.head.".
    """
    weight = state.get(prefix + MAP)
    if weight is None:
        return rows
    return (rows.float() + rows.float() @ weight.to(rows.device, torch.float32)).to(rows.dtype)


def unmapped(read: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    """The rows that are read as these, the reverse of ``mapped``. Shape: (N, d) -> (N, d)."""
    weight = state.get(prefix + MAP)
    if weight is None:
        return read
    whole = torch.eye(len(weight), dtype=torch.float64) + weight.cpu().double()
    return torch.linalg.solve(whole, read.cpu().double(), left=False).to(read)
