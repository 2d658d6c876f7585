"""The codebook of a new dictionary, made from that of an old one: what a model knows stays where it is.

Symbols that stay keep their digits, so the rows that a model learned stay theirs. New symbols take slots that
no token has, or had and has no more, in the group whose tokens are used as they are.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from mhe_fairseq.coding.assign import Floats, Ints
from mhe_fairseq.coding.codebook import Codebook, ravel, unravel
from mhe_fairseq.coding.symbols import Origins

#: New tokens compared with all groups at a time.
_TOGETHER = 4096


def regrow(
    book: Codebook,
    origins: Origins,
    vectors: Floats | None = None,
    counts: Ints | None = None,
    dictionary: str = "",
) -> Codebook:
    """A codebook of the new dictionary.

    A group is what shares all digits but the last. Frequent new tokens choose before rare ones, each the
    group with room whose tokens' mean vector is most like its own; tokens of which nothing is known take
    what has most room. First digits of one token (``coding.shortlist``) take no second one.

    Only where all that leaves too few slots, the last length grows, by as little as it can. Digits of tokens
    that stay are the same then, and so are their slots as pairs of a group and a place in it; their
    numbers, counted through all slots, are others.

    Args:
        book: of the old dictionary.
        origins: of the new one.
        vectors: (V', dim), a vector of each new token's neighbours in text (``assign.context_vectors``);
            zeros, or None for all: nothing is known.
        counts: (V',) how often each token occurs; None: tokens are in order of frequency.
        dictionary: fingerprint of the new dictionary's symbols.
    """
    vocab_size, new, last = len(origins.old), origins.new.numpy(), book.lengths[-1]
    if counts is None:
        counts = np.arange(vocab_size, 0, -1)
    digits = unravel(book.slots[origins.old.clamp(min=0)], book.lengths)
    group = ravel(digits[:, :-1], book.lengths[:-1]) if book.heads > 1 else torch.zeros_like(digits[:, 0])
    groups = book.size // last
    held = np.zeros(groups, dtype=np.int64)
    kept = origins.kept.numpy()
    np.add.at(held, group.numpy()[kept], 1)
    taken = np.zeros((groups, last), dtype=np.bool_)
    taken[group.numpy()[kept], digits[:, -1].numpy()[kept]] = True

    last, capacity = _capacity(book, held, len(new))
    taken = np.pad(taken, ((0, 0), (0, last - taken.shape[1])))
    order = new[np.lexsort((new, -counts[new]))]
    chosen = _choose(order, vectors, group.numpy(), kept, capacity - held)
    place = digits[:, -1].numpy().copy()
    place[order] = _places(taken, chosen)
    slots = group.numpy().copy()
    slots[order] = chosen
    lengths = (*book.lengths[:-1], last)
    return Codebook(lengths, torch.from_numpy(slots * last + place), dictionary=dictionary)


def _capacity(book: Codebook, held: Ints, count: int) -> tuple[int, Ints]:
    """The last length, and how many tokens each group may have, so that ``count`` new ones find room.

    Args:
        held: (groups,) tokens that stay.
    """
    last, groups = book.lengths[-1], len(held)
    if book.heads == 1:
        last = max(last, int(held[0]) + count)
        return last, np.full(1, last)
    first = unravel(book.slots, book.lengths)[:, 0]
    tokens = torch.bincount(first, minlength=book.lengths[0]).repeat_interleave(groups // book.lengths[0])
    is_single = tokens.numpy() == 1
    if is_single.all():
        is_single[:] = False
    is_open = ~is_single
    # A first digit of one token has room where that token is gone; with three digits in its first group.
    per_first = groups // book.lengths[0]
    alone = np.zeros(groups, dtype=np.int64)
    if is_single.any():
        by_first = held.reshape(-1, per_first)
        free = (by_first.sum(axis=1) == 0) & is_single.reshape(-1, per_first)[:, 0]
        alone.reshape(-1, per_first)[free, 0] = 1
    fixed = np.where(is_open, 0, np.maximum(held, alone))
    room_of_singles = int((fixed - held)[~is_open].sum())
    needed = int(held[is_open].sum()) + max(0, count - room_of_singles)
    last = max(last, math.ceil(needed / int(is_open.sum())))
    return last, np.where(is_open, last, fixed)


def _choose(order: Ints, vectors: Floats | None, group: Ints, kept: Ints, room: Ints) -> Ints:
    """The group of each new token of ``order``.

    Args:
        vectors: (V', dim) or None.
        group: (V',) groups of the tokens that stay.
        kept: tokens that stay.
        room: (groups,) tokens that each may take; changed.
    """
    chosen = np.full(len(order), -1, dtype=np.int64)
    if vectors is not None and len(order):
        unit = _unit(vectors)
        centres = np.zeros((len(room), unit.shape[1]), dtype=np.float32)
        np.add.at(centres, group[kept], unit[kept])
        has_centre = np.linalg.norm(centres, axis=1) > 0
        centres = _unit(centres)
        is_known = np.linalg.norm(unit[order], axis=1) > 0
        for begin in range(0, len(order), _TOGETHER):
            part = np.arange(begin, min(begin + _TOGETHER, len(order)))
            part = part[is_known[part]]
            likeness = unit[order[part]] @ centres.T
            likeness[:, ~has_centre] = -np.inf
            for row, index in enumerate(part):
                best = int(np.where(room > 0, likeness[row], -np.inf).argmax())
                if room[best] > 0 and has_centre[best]:
                    chosen[index] = best
                    room[best] -= 1
    for index in np.flatnonzero(chosen < 0):
        chosen[index] = best = int(room.argmax())
        room[best] -= 1
    return chosen


def _places(taken: np.ndarray, chosen: Ints) -> Ints:
    """The first free place of each new token in its group.

    Args:
        taken: (groups, L_H) bool; changed.
        chosen: groups.
    """
    places = np.empty(len(chosen), dtype=np.int64)
    for index, each in enumerate(chosen):
        places[index] = place = int(taken[each].argmin())
        taken[each, place] = True
    return places


def _unit(vectors: Floats) -> Floats:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: Floats = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit
