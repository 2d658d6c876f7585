"""Number and length of heads for a vocabulary."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

from mhe_fairseq.errors import MHEError

#: A codebook holds 8 bytes a slot; beyond this a length has a digit too many.
MOST_SLOTS = 2**28

#: Labels of a group, of ``plan_label_lengths``: this part of the root of their number, and at least so many.
_LABELS_PART, _LABELS_LEAST = 8, 4


def plan_lengths(vocab_size: int, heads: int = 2) -> tuple[int, ...]:
    """Lengths ``(L_1, ..., L_H)`` for ``vocab_size`` tokens: near-equal, few holes.

    The paper decomposes a label space into (near-)exact balanced factors and finds two balanced heads
    better than three (sec. 4; two heads are its usual choice). Among lengths within a factor 1.5 of the
    balanced one this takes the cheapest by rows plus holes: a row costs ``d`` multiply-adds for every
    token, a hole wastes a slot and makes the head normalise over the real tokens.

    Args:
        vocab_size: number of tokens, at least 1.
        heads: number of digits H, at least 1.

    Returns:
        H lengths in rising order, each at least 1, whose product is at least ``vocab_size``.

    Raises:
        MHEError: ``vocab_size`` or ``heads`` below 1.
    """
    if vocab_size < 1:
        raise MHEError(f"a vocabulary needs at least 1 token, got {vocab_size}")
    if heads < 1:
        raise MHEError(f"a token needs at least 1 digit, got heads={heads}")
    lengths: list[int] = []
    rest = vocab_size
    for left in range(heads, 1, -1):
        first = _best_first(rest, left)
        lengths.append(first)
        rest = math.ceil(rest / first)
    lengths.append(rest)
    return tuple(sorted(lengths))


def _best_first(size: int, heads: int) -> int:
    """The length of one of ``heads`` digits over ``size`` slots: fewest rows plus holes near balance."""
    balanced = size ** (1.0 / heads)
    low, high = max(1, math.floor(balanced / 1.5)), max(1, math.ceil(balanced * 1.5))

    def cost(length: int) -> tuple[float, float]:
        rest = math.ceil(size / length)
        other = rest ** (1.0 / (heads - 1))
        holes = length * rest - size
        # A grid without holes needs no normaliser: worth a tenth more rows.
        rows = (length + (heads - 1) * other) * (1.1 if holes else 1.0)
        return (rows + holes / length, abs(length - balanced))

    return min(range(low, high + 1), key=cost)


def plan_label_lengths(labels: int) -> tuple[int, int]:
    """Groups, and labels of each, for documents with several labels: more and smaller than for tokens.

    A document's labels are in several groups, and what ranks them is mostly how well groups are told apart:
    with eight times the root of V groups (measured: 10,232 labels) the first label is found nearly as often
    as by a dense layer, and to score them is 8 / sqrt(V) of its work.

    Raises:
        MHEError: ``labels`` below 1.
    """
    if labels < 1:
        raise MHEError(f"a document needs at least 1 label to choose from, got {labels}")
    size = min(labels, max(_LABELS_LEAST, round(math.sqrt(labels) / _LABELS_PART)))
    return math.ceil(labels / size), size


def parse_lengths(text: str | Sequence[int], vocab_size: int | None = None) -> tuple[int, ...]:
    """Read ``"128,256"`` (or a sequence of ints) as lengths and check them against a vocabulary.

    Args:
        text: positive whole numbers separated by commas.
        vocab_size: when given, the product of the lengths must reach it.

    Raises:
        MHEError: not whole numbers, not positive, a product below ``vocab_size`` or above ``MOST_SLOTS``.
    """
    shown = text if isinstance(text, str) else ",".join(str(p) for p in text)
    parts = text.split(",") if isinstance(text, str) else text
    try:
        # operator.index, not int: int(2.7) is 2.
        lengths = tuple(int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError):
        raise MHEError(
            f"lengths must be whole numbers separated by commas, such as 128,256; got {shown!r}"
        ) from None
    if not lengths or any(length < 1 for length in lengths):
        raise MHEError(f"every length must be at least 1, got {shown!r}")
    product = math.prod(lengths)
    if product > MOST_SLOTS:
        raise MHEError(
            f"lengths {shown} give {product} slots, more than the {MOST_SLOTS} a codebook may have; their "
            "product should be just above the number of tokens"
        )
    if vocab_size is not None and product < vocab_size:
        suggestion = ",".join(str(n) for n in plan_lengths(vocab_size, len(lengths)))
        raise MHEError(
            f"lengths {shown} give {product} slots for {vocab_size} tokens; "
            f"their product must be at least {vocab_size}, such as {suggestion}"
        )
    return lengths
