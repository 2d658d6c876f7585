"""A first digit of its own for each of the most frequent tokens; the others share the first digits left.

Where a product of digits finds two tokens likely, (a, 1) and (b, 2), it finds (a, 2) and (b, 1) as likely,
which nobody asked for. Tokens that have the first digit for themselves have a full soft-max among them
instead, and a thousand of them are two thirds of a text. In a codebook this is nothing but holes: the row of
such a token has one slot in use.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.coding.assign import Ints
from mhe_fairseq.coding.plan import parse_lengths
from mhe_fairseq.errors import MHEError

#: (tokens of the rest, lengths) -> their slots, as numbers among themselves.
Layout = Callable[[Ints, tuple[int, ...]], Tensor]


def plan_shortlist(vocab_size: int, shortlist: int) -> tuple[int, int]:
    """Lengths for a shortlist: the rest has as many first digits as the shortlist.

    Raises:
        MHEError: ``shortlist`` not in 1 .. V - 1.
    """
    _check_size(vocab_size, shortlist)
    width = -(-(vocab_size - shortlist) // shortlist)
    return shortlist + -(-(vocab_size - shortlist) // width), width


def shortlist_slots(counts: Ints, lengths: Sequence[int], shortlist: int, rest: Layout) -> Tensor:
    """Slots with a first digit of its own for each of the ``shortlist`` most frequent tokens.

    Args:
        counts: (V,) occurrences of every token in text; of two as frequent the first is taken.
        lengths: at least two.
        shortlist: number of tokens.
        rest: lays out the other tokens over the first digits that are left, such as ``order_slots``.

    Returns:
        (V,) long: the shortlist first, in order of frequency, its other digits 0; then the rest.

    Raises:
        MHEError: ``shortlist`` not in 1 .. V - 1, one length, or too few slots for the rest.
    """
    vocab_size = len(counts)
    lengths = parse_lengths(lengths)
    _check_size(vocab_size, shortlist)
    if len(lengths) < 2:
        raise MHEError(
            f"a shortlist has first digits for itself, so it needs at least two lengths; got {lengths[0]}"
        )
    width = int(np.prod(lengths[1:]))
    if (lengths[0] - shortlist) * width < vocab_size - shortlist:
        shown = ",".join(map(str, lengths))
        suggestion = ",".join(map(str, plan_shortlist(vocab_size, shortlist)))
        raise MHEError(
            f"lengths {shown} have {max(0, lengths[0] - shortlist) * width} slots beside a shortlist of "
            f"{shortlist}, for the {vocab_size - shortlist} other tokens; take lengths such as {suggestion}"
        )
    order = np.lexsort((np.arange(vocab_size), -counts))
    others = np.sort(order[shortlist:])
    slots = torch.empty(vocab_size, dtype=torch.long)
    slots[torch.from_numpy(order[:shortlist].copy())] = torch.arange(shortlist) * width
    slots[torch.from_numpy(others)] = shortlist * width + rest(others, (lengths[0] - shortlist, *lengths[1:]))
    return slots


def _check_size(vocab_size: int, shortlist: int) -> None:
    if not 1 <= shortlist < vocab_size:
        raise MHEError(f"a shortlist has at least 1 token and fewer than all {vocab_size}; got {shortlist}")
