"""The best tokens of a cascade: groups are opened best first, until no unopened one can matter."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_fairseq.heads.cascade.level import Level

#: Groups of a row opened in the first round; twice as many in every round after it.
_FIRST = 8

#: The same, of a hypothesis of a beam.
_FIRST_OF_BEAM = 3

#: At most about this many numbers are held for the groups opened in one round.
_HELD = 2**24


@dataclass
class Beams:
    """Rows that are hypotheses of sentences, of whose continuations the best of a sentence are wanted.

    Attributes:
        scores: (N,) of the hypotheses, to be added to their tokens' log-probabilities; -inf: not one to go on
            with.
        size: hypotheses of a sentence; its rows stand together.
        without: (W,) slots of tokens that are not looked for.
    """

    scores: Tensor
    size: int
    without: Tensor

    def floor(self, best: Tensor) -> Tensor:
        """What a token must exceed to be among the k best of its sentence. Shape: (N, k) -> (N, 1)."""
        k = best.size(1)
        total = best + self.scores.unsqueeze(1)
        # A hypothesis of NaN has nothing among the best, and keeps nothing of the others' from being found.
        total = total.masked_fill(total.isnan(), -torch.inf).view(-1, self.size * k)
        worst = total.topk(k, dim=1).values[:, -1:].repeat_interleave(self.size, dim=0)
        # -inf - -inf: nothing exceeds it, as nothing of a hypothesis with such a score is wanted.
        return (worst - self.scores.unsqueeze(1)).nan_to_num(torch.inf, torch.inf, -torch.inf)


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


def best_first(
    first: Tensor,
    levels: list[Level],
    inputs: list[Tensor],
    k: int,
    beams: Beams | None = None,
    allowed: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """The k best slots of every row, or those of them that are among the k best of every sentence.

    A token is never more probable than any of its prefixes, so a row is done when its k-th best token is
    at least as probable as its best unopened prefix. With ``beams``, when the k-th best of the sentence
    is: most hypotheses are done when their first groups are opened.

    Args:
        first: (N, L_1) log-probabilities of the first digit, -inf for those without tokens.
        levels: of the other digits.
        inputs: (N, .) the features each of these levels reads.
        k: not more than there are tokens, without those that ``beams`` leaves out.
        beams: rows are hypotheses of sentences.
        allowed: of each level, (prefixes * length,) bool: what is found is below these. The same is to be
            true of ``first``.

    Returns:
        (N, k) log-probabilities, descending, and (N, k) slots. With ``beams`` or ``allowed`` a row may have
        fewer: the others are -inf, of no slot in particular.
    """
    state = _State(first.clone(), k)
    best, slots = state.best.clone(), state.slots.clone()
    # Nodes are numbered level by level.
    first_node = [0]
    for level in levels:
        first_node.append(first_node[-1] + level.prefixes)
    longest = max(level.length for level in levels)
    wanted = _FIRST if beams is None else _FIRST_OF_BEAM
    while len(state.rows):
        if beams is None:
            floor = state.best[:, -1:]
        else:
            best[state.rows], slots[state.rows] = state.best, state.slots
            floor = beams.floor(best)[state.rows]
        room = max(1, _HELD // (len(state.rows) * longest))
        values, place = state.scores.topk(min(wanted, room, state.scores.size(1)), dim=1)
        # Not "values > k-th best": a NaN is opened too, and reaches the result.
        is_open = (values != -torch.inf) & ~(values <= floor)
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
            # Places in a row's line of opened prefixes; a boolean index would look for them each time.
            cells = at.flatten().nonzero().squeeze(1)
            if not len(cells):
                continue
            prefix = nodes.flatten()[cells] - first_node[depth]
            rows = state.rows[cells.div(at.size(1), rounding_mode="floor")]
            child = level.log_softmax(x, prefix, rows).add_(values.flatten()[cells].unsqueeze(1))
            if allowed is not None:
                is_found = allowed[depth].view(level.prefixes, level.length)[prefix]
                child = child.masked_fill(~is_found, -torch.inf)
            is_last = depth == len(levels) - 1
            if is_last:
                unwanted = 0 if beams is None else len(beams.without)
                child, digit = child.topk(min(k + unwanted, level.length), dim=1)
            else:
                digit = torch.arange(level.length, device=prefix.device).expand_as(child)
            below = prefix.unsqueeze(1) * level.length + digit
            if is_last and beams is not None:
                child = child.masked_fill(torch.isin(below, beams.without), -torch.inf)
            scores = child.new_full((at.numel(), child.size(1)), -torch.inf).index_copy_(0, cells, child)
            names = below.new_zeros(scores.shape).index_copy_(0, cells, below)
            if is_last:
                state.add_tokens(scores.view(len(at), -1), names.view(len(at), -1))
            else:
                state.add_nodes(scores.view(len(at), -1), names.view(len(at), -1) + first_node[depth + 1])
        wanted *= 2
    return best, slots
