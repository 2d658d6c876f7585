"""V-wide tables without the tokens that are not to be found."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads import Allowed


def restricted(ensemble: Any, allowed: Allowed, prefix_steps: int) -> Any:
    """fairseq's ensemble, whose log-probabilities of tokens that are not allowed are -inf.

    Args:
        ensemble: the generator's, not changed.
        allowed: what may be found.
        prefix_steps: in so many steps tokens may be given, and a token that is given is taken as it is: then
            ``forbid`` is called where none is.

    Returns:
        A copy, for one batch.
    """
    forward = ensemble.forward_decoder

    def forward_decoder(tokens: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
        log_probs, attention = forward(tokens, *args, **kwargs)
        if tokens.size(1) > prefix_steps:
            forbid(log_probs, allowed.on(log_probs.device))
        return log_probs, attention

    changed = copy.copy(ensemble)
    changed.forward_decoder = forward_decoder
    return changed


def forbid(log_probs: Tensor, is_allowed: Tensor, rows: Tensor | None = None) -> None:
    """Write -inf to columns.

    Args:
        log_probs: (N, C), written to.
        is_allowed: (C,) bool.
        rows: (N,) bool, those that are written to; None: all.
    """
    where = ~is_allowed.unsqueeze(0)
    log_probs.masked_fill_(where if rows is None else where & rows.unsqueeze(1), -torch.inf)
