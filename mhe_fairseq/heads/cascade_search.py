"""The best tokens of a cascade: groups are opened best first, until no unopened one can matter."""

from __future__ import annotations

import torch
from torch import Tensor

from mhe_fairseq.heads.cascade_level import Level

#: Groups of a row opened in the first round; twice as many in every round after it.
_FIRST = 8

#: At most about this many numbers are held for the groups opened in one round.
_HELD = 2**24


class _State:
    """Rows whose best tokens are still being looked for (A of them).

    Attributes:
        rows: (A,) their numbers.
        scores: (A, C) log-probabilities of unopened prefixes, -inf for those that were opened.
        nodes: (A, C) the prefixes; those of different lengths are told apart by ``first_node``.
        best: (A, k) log-probabilities of the best tokens so far, descending.
        slots: (A, k) their slots.
    """

    def __init__(self, scores: Tensor, k: int) -> None:
        count, width = scores.shape
        self.rows = torch.arange(count, device=scores.device)
        self.scores = scores
        self.nodes = torch.arange(width, device=scores.device).expand(count, width)
        self.best = scores.new_full((count, k), -torch.inf)
        self.slots = self.rows.new_zeros(count, k)

    def keep(self, which: Tensor) -> None:
        """Drop the other rows. Shape: (A,) bool."""
        for name in ("rows", "scores", "nodes", "best", "slots"):
            setattr(self, name, getattr(self, name)[which])

    def add_tokens(self, scores: Tensor, slots: Tensor) -> None:
        """Shape: (A, n), (A, n)."""
        k = self.best.size(1)
        self.best, place = torch.cat([self.best, scores], dim=1).topk(k, dim=1)
        self.slots = torch.cat([self.slots, slots], dim=1).gather(1, place)

    def add_nodes(self, scores: Tensor, nodes: Tensor) -> None:
        """Shape: (A, n), (A, n)."""
        self.scores = torch.cat([self.scores, scores], dim=1)
        self.nodes = torch.cat([self.nodes, nodes], dim=1)


def best_first(first: Tensor, levels: list[Level], inputs: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
    """The k best slots of every row.

    A token is never more probable than any of its prefixes, so a row is done when its k-th best token is
    at least as probable as its best unopened prefix.

    Args:
        first: (N, L_1) log-probabilities of the first digit, -inf for those without tokens.
        levels: of the other digits.
        inputs: (N, .) the features each of these levels reads.
        k: not more than there are tokens.

    Returns:
        (N, k) log-probabilities, descending, and (N, k) slots.
    """
    state = _State(first.clone(), k)
    best, slots = state.best.clone(), state.slots.clone()
    # Nodes are numbered level by level.
    first_node = [0]
    for level in levels:
        first_node.append(first_node[-1] + level.prefixes)
    longest = max(level.length for level in levels)
    wanted = _FIRST
    while len(state.rows):
        room = max(1, _HELD // (len(state.rows) * longest))
        values, place = state.scores.topk(min(wanted, room, state.scores.size(1)), dim=1)
        # Not "values > k-th best": a NaN is opened too, and reaches the result.
        is_open = (values != -torch.inf) & ~(values <= state.best[:, -1:])
        going = is_open.any(dim=1)
        if not bool(going.all()):
            best[state.rows[~going]], slots[state.rows[~going]] = state.best[~going], state.slots[~going]
            state.keep(going)
            values, place, is_open = values[going], place[going], is_open[going]
            if not len(state.rows):
                break
        nodes = state.nodes.gather(1, place)
        state.scores.scatter_(1, place, values.masked_fill(is_open, -torch.inf))
        for depth, (level, x) in enumerate(zip(levels, inputs, strict=True)):
            at = is_open & (nodes >= first_node[depth]) & (nodes < first_node[depth + 1])
            row = at.nonzero()[:, 0]
            if not len(row):
                continue
            prefix = nodes[at] - first_node[depth]
            child = values[at].unsqueeze(-1) + level.log_softmax(x, prefix, state.rows[row])
            is_last = depth == len(levels) - 1
            if is_last:
                child, digit = child.topk(min(k, level.length), dim=1)
            else:
                digit = torch.arange(level.length, device=prefix.device).expand_as(child)
            scores = first.new_full((*at.shape, child.size(1)), -torch.inf)
            scores[at] = child
            names = prefix.new_zeros(scores.shape)
            names[at] = prefix.unsqueeze(-1) * level.length + digit
            if is_last:
                state.add_tokens(scores.flatten(1), names.flatten(1))
            else:
                state.add_nodes(scores.flatten(1), names.flatten(1) + first_node[depth + 1])
        wanted *= 2
    return best, slots
