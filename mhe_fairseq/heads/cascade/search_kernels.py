"""A cascade's search by kernels: whether they serve, and what they are given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.heads.cascade.level import Level
from mhe_fairseq.heads.kernels import dispatch
from mhe_fairseq.heads.slot_names import SlotNames

if TYPE_CHECKING:
    from mhe_fairseq.heads.cascade.head import CascadeHead
    from mhe_fairseq.heads.cascade.reading import CascadeReading


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


def continuations(
    reading: CascadeReading, scores: Tensor, beam: int, without: Tensor, out: Tensor, tokens: Tensor,
    marked: bool,
) -> bool:  # fmt: skip
    """``beam_candidates`` by kernels, or only those marked, written to ``out`` and ``tokens`` (N, k).

    Returns False where they do not work on this device.
    """
    from mhe_fairseq.heads.kernels import best_first

    head, prefixes, x = reading.head, reading.prefixes, reading.inputs[-1].contiguous()
    names = _names(head, x.device).without(without)
    table, length = head.local.weight, head.local.length

    def search(rows: slice) -> bool:
        with dispatch.on(x.device):
            best_first.continuations(
                prefixes[rows], x[rows], table, names, length, scores[rows], beam, out[rows], tokens[rows],
                marked,
            )  # fmt: skip
        return True

    kind = ("continuations", length, beam, out.size(1), marked, dispatch.kind_of(prefixes))
    return _tried(kind, x, table, search, beam)


def given(reading: CascadeReading, tokens: Tensor, out: Tensor) -> bool:
    """``log_prob_of`` by kernels, written to ``out`` (N, C); False where they do not work on this device."""
    from mhe_fairseq.heads.kernels import best_first

    head, prefixes, x = reading.head, reading.prefixes, reading.inputs[-1].contiguous()
    names = _names(head, x.device)
    table, length = head.local.weight, head.local.length

    def score(rows: slice) -> bool:
        asked = tokens if tokens.dim() == 1 else tokens[rows]
        with dispatch.on(x.device):
            best_first.given(
                prefixes[rows], x[rows], table, names.names, names.slots, length, asked, out[rows]
            )
        return True

    return _tried(("given", length, tokens.dim(), dispatch.kind_of(prefixes)), x, table, score, 1)


def _tried(
    kind: tuple[object, ...], x: Tensor, table: Tensor, run: Callable[[slice], bool], few: int
) -> bool:
    """Run for all rows, the first time for the first ``few`` of them before."""
    key = (*kind, dispatch.kind_of(x), dispatch.kind_of(table))
    return bool(dispatch.attempt(key, lambda: run(slice(0, few)), lambda: run(slice(None))))


def _names(head: CascadeHead, device: torch.device) -> SlotNames:
    """Of the head's codebook, made where it is first asked for."""
    kept = head.slot_names
    if kept is None or kept.names.device != device:
        # Inside a transform of torch.func they would be of that transform only.
        with torch._C._DisableFuncTorch():
            kept = SlotNames(head.codebook, device)
        head.slot_names = kept
    return kept
