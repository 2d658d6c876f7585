"""A product's or mixture's best tokens by kernels: whether they serve, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.heads.base import Candidates
from mhe_fairseq.heads.column_sums import digit_views
from mhe_fairseq.heads.kernels import dispatch

if TYPE_CHECKING:
    from mhe_fairseq.coding.codebook import Codebook
    from mhe_fairseq.heads.kernels.best_tokens import SlotTables
    from mhe_fairseq.heads.product import ProductHead

#: Different sets of continuations that values of the first digit may have: a row's normaliser reads each.
MOST_PATTERNS = 64

#: Components, and values of the first digit: what a program keeps in registers.
MOST_COMPONENTS, MOST_VALUES = 256, 16384


class Kept(NamedTuple):
    """Tables of a codebook, for one device; None: it is not for kernels."""

    device: torch.device
    tables: SlotTables | None


def serves(head: ProductHead, features: Tensor, k: int) -> bool:
    """Whether kernels find the k best tokens of these features.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or head.heads < 2 or torch.is_grad_enabled() and features.requires_grad:
        return False
    if not dispatch.serve(features, head.weight):
        return False
    from mhe_fairseq.heads.kernels.best_first import MOST_BEST

    return k <= MOST_BEST and _tables(head, features.device) is not None


@torch.no_grad()
def best(head: ProductHead, features: Tensor, k: int, tokens: Tensor | None) -> Candidates | None:
    """``candidates`` by kernels; None where they do not work on this device."""
    from mhe_fairseq.heads.kernels.best_tokens import best_tokens

    tables = _tables(head, features.device)
    assert tables is not None
    asked = tables.slots[:0] if tokens is None else tokens

    def search(x: Tensor) -> Candidates:
        logits, gate = head.mixture_logits(x)
        first, *others = digit_views(logits, head.codebook.lengths)
        rest = others[0]
        for other in others[1:]:
            rest = (rest.unsqueeze(-1) + other.unsqueeze(-2)).flatten(2)
        with dispatch.on(x.device):
            found = best_tokens(first, gate.contiguous(), rest, tables, asked, k)
        scores, place = found.scores.topk(k, dim=1)
        return Candidates(scores, found.tokens.gather(1, place), found.given)

    return dispatch.attempt(
        ("best tokens", head.codebook.lengths, head.mixtures, k, len(asked), dispatch.kind_of(features)),
        lambda: search(features[:1]),
        lambda: search(features),
    )


def _tables(head: ProductHead, device: torch.device) -> SlotTables | None:
    """Of the head's codebook, made where it is first asked for."""
    kept = head.search_tables
    if kept is None or kept.device != device:
        # Inside a transform of torch.func they would be of that transform only.
        with torch._C._DisableFuncTorch():
            kept = head.search_tables = Kept(device, _make(head.codebook, head.mixtures, device))
    return kept.tables


def _make(codebook: Codebook, components: int, device: torch.device) -> SlotTables | None:
    from mhe_fairseq.heads.kernels.best_tokens import SlotTables

    width = codebook.lengths[0]
    if components > MOST_COMPONENTS or width > MOST_VALUES:
        return None
    names = codebook.token_of_slot
    pattern_of = patterns = None
    if codebook.holes:
        real = (names >= 0).view(width, -1).numpy()
        rows, number = np.unique(np.packbits(real, axis=1), axis=0, return_inverse=True)
        if len(rows) > MOST_PATTERNS:
            return None
        first = np.unique(number.reshape(-1), return_index=True)[1]
        patterns = torch.from_numpy(real[first]).to(device, torch.int8)
        pattern_of = torch.from_numpy(number.reshape(-1)).to(device, torch.int32)
    return SlotTables(names.to(device, torch.int32), pattern_of, patterns, codebook.slots.to(device))
