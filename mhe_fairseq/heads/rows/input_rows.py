"""What an output layer adds to the input embeddings of tokens: the rows of their digits.

A tied soft-max has one table for both sides: what marks a token in the input, and so in whatever the model
carries of it to its output, is what scores it there. The group of a token has a row on the output side
only, and a model has to learn for every token anew which group it is of. With the group's row in the input
embeddings of its tokens, groups are tied on both sides as tokens are.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.coding.codebook import Codebook, ravel, unravel

#: In the state dict of heads whose digits' rows are part of the input embeddings.
MARK = "rows_in_input"


def digit_rows(digits: Tensor, tables: Sequence[Tensor], counts: Sequence[Tensor]) -> Tensor:
    """Sum of the rows of each digit that several tokens have; that of a token alone is tied to its embedding.

    Args:
        digits: (..., H) long.
        tables: H tensors (L_h, d).
        counts: H tensors (L_h,): tokens with each value.

    Returns:
        (..., d).
    """
    total = tables[0].new_zeros(*digits.shape[:-1], tables[0].size(-1))
    for h, (table, count) in enumerate(zip(tables, counts, strict=True)):
        total = total + _shared(digits[..., h], table, count)
    return total


def prefix_rows(digits: Tensor, lengths: Sequence[int], tables: Sequence[Tensor], counts: Tensor) -> Tensor:
    """Sum of the rows of a token's group, and of its group in that. No row where the first digit is of one
    token.

    Args:
        digits: (..., H) long.
        lengths: H.
        tables: (L_1, d), and (L_1, L_2, d) where H = 3.
        counts: (L_1,): tokens of each first digit.

    Returns:
        (..., d).
    """
    several = counts[digits[..., 0]] > 1
    total = _shared(digits[..., 0], tables[0], counts)
    for h, table in enumerate(tables[1:], start=2):
        prefix = ravel(digits[..., :h], lengths[:h])
        total = total + F.embedding(prefix, table.flatten(0, -2)) * several.unsqueeze(-1)
    return total


def marks_of_groups(weight: Tensor, groups: int) -> Tensor:
    """One row a group, of a table with m rows for each: their sum / sqrt(m).

    Of m rows drawn apart, as a new head has them, it is as large as one of them: training starts alike for
    every m. Their mean would be sqrt(m) times smaller. Shape: (L_1 m, d) -> (L_1, d), itself where m is 1.
    """
    count = len(weight) // groups
    return weight if count == 1 else weight.unflatten(0, (groups, count)).sum(dim=1) / count**0.5


def rows_of_state(state: dict[str, Tensor], prefix: str) -> Tensor | None:
    """What a saved head adds to the embeddings of all tokens, (V, d); None: nothing.

    Args:
        state: a state dict.
        prefix: of the head's keys, such as "encoder.head.".
    """
    if prefix + MARK not in state:
        return None
    lengths = tuple(state[prefix + "codebook_lengths"].tolist())
    book = Codebook(lengths, state[prefix + "codebook_slots"].cpu())
    digits = unravel(book.slots, lengths)
    counts = [torch.bincount(digits[:, h], minlength=length) for h, length in enumerate(lengths)]
    group = state.get(prefix + "group.weight")
    if group is None:
        tables = state[prefix + "weight"].cpu()[: sum(lengths)].split(list(lengths))
        return digit_rows(digits, tables, counts)
    below = [state[prefix + "subgroup.table"].cpu()] if len(lengths) == 3 else []
    return prefix_rows(digits, lengths, [marks_of_groups(group.cpu(), lengths[0]), *below], counts[0])


def with_rows_of_state(embedding: Tensor, state: dict[str, Tensor], prefix: str) -> Tensor:
    """An embedding as the model reads it, with what its saved head adds. Shape: (V, d) -> (V, d).

    Args:
        embedding: from ``state``; itself returned where nothing is added.
        state, prefix: as for ``rows_of_state``.
    """
    added = rows_of_state(state, prefix)
    return embedding if added is None else embedding + added.to(embedding)


def _shared(values: Tensor, table: Tensor, count: Tensor) -> Tensor:
    """Rows of these values, zero for values of one token. Shape: (...), (L, d), (L,) -> (..., d)."""
    rows = F.embedding(values, table)
    return rows * (count > 1)[values].unsqueeze(-1)
