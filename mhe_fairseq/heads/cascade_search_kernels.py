"""A cascade's search by kernels: whether they serve, and what they are given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.heads.cascade_level import Level
from mhe_fairseq.heads.kernels import dispatch

if TYPE_CHECKING:
    from mhe_fairseq.heads.cascade import CascadeHead
    from mhe_fairseq.heads.cascade_reading import CascadeReading


@dataclass(eq=False)
class SearchTables:
    """What the search's kernels read of a codebook, on one device.

    Attributes:
        names: (P * L,) int32: a slot's token, -1 where there is none.
    """

    names: Tensor
    _named: tuple[Tensor, Tensor] | None = None

    def without(self, tokens: Tensor, slots: Tensor) -> Tensor:
        """The names, with -2 - token for tokens that are not looked for. Shape: (W,), (V,) long -> (P * L,).

        Kept for the next step, which hands over the same tensor.
        """
        if not len(tokens):
            return self.names
        kept = self._named
        if kept is None or kept[0] is not tokens:
            names = self.names.index_put((slots[tokens],), -2 - tokens.to(torch.int32))
            self._named = kept = (tokens, names)
        return kept[1]


def serves(head: CascadeHead, features: Tensor, k: int, beam: int) -> bool:
    """Whether kernels search these features for k tokens of sentences of ``beam`` hypotheses.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or any(type(level) is not Level for level in head.levels):
        return False
    if not dispatch.serve(features, head.group.weight, *(level.weight for level in head.levels)):
        return False
    from mhe_fairseq.heads.kernels import best_first

    return (
        k <= best_first.MOST_BEST
        and beam <= best_first.MOST_ROWS
        and head.local.prefixes <= best_first.MOST_PREFIXES
    )


def tables(head: CascadeHead, device: torch.device) -> SearchTables:
    """Of the head's codebook, made where it is first asked for."""
    kept = head.search_tables
    if kept is None or kept.names.device != device:
        # Inside a transform of torch.func they would be of that transform only.
        with torch._C._DisableFuncTorch():
            kept = SearchTables(head.codebook.token_of_slot.to(device, torch.int32))
        head.search_tables = kept
    return kept


def continuations(
    reading: CascadeReading, k: int, scores: Tensor, beam: int, without: Tensor
) -> tuple[Tensor, Tensor] | None:
    """``beam_candidates`` by kernels; None where they do not work on this device."""
    from mhe_fairseq.heads.kernels import best_first

    head, prefixes, x = reading.head, reading.prefixes, reading.inputs[-1].contiguous()
    names = tables(head, x.device).without(without, head.codebook_slots)
    table, length = head.local.weight, head.local.length
    scores = scores.to(prefixes.dtype)

    def search(rows: slice) -> tuple[Tensor, Tensor]:
        with dispatch.on(x.device):
            return best_first.continuations(
                prefixes[rows], x[rows], table, names, length, scores[rows], beam, k
            )

    return dispatch.attempt(
        ("continuations", prefixes.size(1), length, beam, k, dispatch.kind_of(x), dispatch.kind_of(table)),
        lambda: search(slice(0, beam)),
        lambda: search(slice(None)),
    )


def given(reading: CascadeReading, tokens: Tensor) -> Tensor | None:
    """``log_prob_of`` by kernels; None where they do not work on this device."""
    from mhe_fairseq.heads.kernels import best_first

    head, prefixes, x = reading.head, reading.prefixes, reading.inputs[-1].contiguous()
    names = tables(head, x.device).names
    table, length = head.local.weight, head.local.length

    def score(rows: slice) -> Tensor:
        asked = tokens if tokens.dim() == 1 else tokens[rows]
        with dispatch.on(x.device):
            return best_first.given(prefixes[rows], x[rows], table, names, head.codebook_slots, length, asked)

    return dispatch.attempt(
        ("given", prefixes.size(1), length, tokens.dim(), dispatch.kind_of(x), dispatch.kind_of(table)),
        lambda: score(slice(0, 1)),
        lambda: score(slice(None)),
    )
