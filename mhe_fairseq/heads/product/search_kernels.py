"""A product's or mixture's best tokens by kernels: whether they serve, and what they are given."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.heads.kernels import dispatch
from mhe_fairseq.heads.product.column_sums import digit_views
from mhe_fairseq.heads.slot_names import SlotNames

if TYPE_CHECKING:
    from mhe_fairseq.coding.codebook import Codebook
    from mhe_fairseq.heads.kernels.best_tokens import SlotTables
    from mhe_fairseq.heads.product.head import ProductHead

#: Different sets of continuations that values of the first digit may have: a row's normaliser reads each.
MOST_PATTERNS = 64

#: Components, and values of the first digit: what a program keeps in registers.
MOST_COMPONENTS, MOST_VALUES = 256, 16384


class SearchTables(NamedTuple):
    """Of a codebook, on one device.

    Attributes:
        names: of the slots.
        patterns: which slots are tokens; None: too many patterns for kernels.
    """

    names: SlotNames
    patterns: SlotTables | None


def serves(head: ProductHead, features: Tensor, k: int) -> bool:
    """Whether kernels find the k best tokens of these features. Nothing that they find has a gradient.

    Raises:
        MHEError: ``MHE_KERNELS`` asks for what is not there.
    """
    if not len(features) or head.heads < 2 or (torch.is_grad_enabled() and features.requires_grad):
        return False
    if not dispatch.serve(features, head.weight):
        return False
    from mhe_fairseq.heads.kernels.best_first import MOST_BEST

    return k <= MOST_BEST and _tables(head, features.device).patterns is not None


def best(
    head: ProductHead, features: Tensor, without: Tensor, asked: Tensor, scores: Tensor, tokens: Tensor,
    given: Tensor,
) -> bool:  # fmt: skip
    """The best tokens of features (N, d), in no order, and the log-probabilities of some.

    Args:
        head, features: ``serves`` is true of them.
        without: (W,) long, tokens that are not looked for.
        asked: (C,) long, tokens to be scored.
        scores, tokens, given: (N, k), (N, k) and (N, C), as in ``best_tokens.Found``; written to.

    Returns:
        False where kernels do not work on this device.
    """
    from mhe_fairseq.heads.kernels.best_tokens import Found, best_tokens

    tables = _tables(head, features.device)
    names, patterns = tables.names.without(without), tables.patterns
    assert patterns is not None

    def search(rows: slice) -> bool:
        logits, gate = head.mixture_logits(features[rows])
        first, rest, *others = digit_views(logits, head.codebook.lengths)
        for other in others:
            rest = (rest.unsqueeze(-1) + other.unsqueeze(-2)).flatten(2)
        found = Found(scores[rows], tokens[rows], given[rows])
        with dispatch.on(features.device):
            best_tokens(first, gate.contiguous(), rest, names, patterns, asked, found)
        return True

    key = (head.codebook.lengths, head.mixtures, scores.size(1), len(asked), dispatch.kind_of(features))
    return bool(
        dispatch.attempt(("best tokens", *key), lambda: search(slice(0, 1)), lambda: search(slice(None)))
    )


def _tables(head: ProductHead, device: torch.device) -> SearchTables:
    """Of the head's codebook, made where it is first asked for."""
    kept = head.search_tables
    if kept is None or kept.names.names.device != device:
        # Inside a transform of torch.func they would be of that transform only.
        with torch._C._DisableFuncTorch():
            names = SlotNames(head.codebook, device)
            kept = SearchTables(names, _patterns(head.codebook, head.mixtures, names))
        head.search_tables = kept
    return kept


def _patterns(codebook: Codebook, components: int, names: SlotNames) -> SlotTables | None:
    from mhe_fairseq.heads.kernels.best_tokens import SlotTables

    width = codebook.lengths[0]
    if components > MOST_COMPONENTS or width > MOST_VALUES:
        return None
    pattern_of = patterns = None
    if codebook.holes:
        real = (codebook.token_of_slot >= 0).view(width, -1).numpy()
        rows, first, number = np.unique(
            np.packbits(real, axis=1), axis=0, return_index=True, return_inverse=True
        )
        if len(rows) > MOST_PATTERNS:
            return None
        device = names.slots.device
        patterns = torch.from_numpy(real[first]).to(device, torch.int8)
        pattern_of = torch.from_numpy(number.reshape(-1)).to(device, torch.int32)
    return SlotTables(pattern_of, patterns, names.slots)
