"""Which digit sequences are tokens: a minimal automaton over digits, so that holes cost little.

A codebook's grid has holes. The set of digit prefixes is a tree; prefixes with the same pattern of tokens
below them are one state. The usual layouts (holes at the end of the grid, or at the end of every row)
have two or three states a level, so sums and maxima over exactly the V real tokens cost O(sum L).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.heads.product.column_sums import DigitSet


@dataclass(frozen=True)
class Edge:
    """The digits that lead from a state to one and the same state of the next level.

    Attributes:
        child: state of the next level (0 after the last digit).
        columns: these digits.
        number: of ``columns`` in ``Lattice.sets``.
    """

    child: int
    columns: DigitSet
    number: int

    @property
    def digits(self) -> Tensor | None:
        """(n,) long, rising; None: all digits of this level."""
        return self.columns.values

    def digit_of(self, columns: Tensor) -> Tensor:
        """Column numbers of ``columns.read()`` -> digits."""
        return columns if self.digits is None else self.columns.index_on(columns.device)[columns]


class Lattice:
    """States of a codebook's digit prefixes.

    Attributes:
        lengths: (L_1, ..., L_H).
        levels: for each digit, for each state before it, its edges; the root is state 0 of level 0.
        sets: all values of each digit, H of them, then the other sets of digits that edges have, each once.
        full: there are no holes.
    """

    def __init__(self, codebook: Codebook) -> None:
        self.lengths = codebook.lengths
        self.full = codebook.holes == 0
        self.sets = [DigitSet(level, None) for level in range(len(self.lengths))]
        self.levels: list[list[list[Edge]]] = []
        numbers: dict[tuple[int, bytes], int] = {}
        # From the last digit up: `below` holds for every prefix its state, -1 if no token is below it.
        below = np.where(codebook.token_of_slot.numpy() >= 0, 0, -1)
        for level in reversed(range(len(self.lengths))):
            rows, states = _unique_rows(below.reshape(-1, self.lengths[level]))
            self.levels.insert(0, [self._edges(row, level, numbers) for row in rows])
            below = states

    def _edges(self, row: np.ndarray, level: int, numbers: dict[tuple[int, bytes], int]) -> list[Edge]:
        edges = []
        for child in np.unique(row[row >= 0]):
            digits = np.flatnonzero(row == child)
            number = level
            if len(digits) < len(row):
                number = numbers.setdefault((level, digits.tobytes()), len(self.sets))
                if number == len(self.sets):
                    self.sets.append(DigitSet(level, torch.from_numpy(digits)))
            edges.append(Edge(int(child), self.sets[number], number))
        return edges

    def log_mass(self, scores: list[Tensor], digit_mass: Sequence[Tensor] | None = None) -> Tensor:
        """log of the sum over real tokens of exp(sum_h scores_h[y_h]).

        Cost: states x L a level.

        Shape: H tensors (..., L_h), and their log-sum-exps where they are known, (...) each -> (...).
        """
        if digit_mass is None:
            digit_mass = [score.logsumexp(dim=-1) for score in scores]
        rest = self.sets[len(self.lengths) :]
        return self.log_mass_of(
            [*digit_mass, *(each.read(scores[each.level]).logsumexp(dim=-1) for each in rest)]
        )

    def log_mass_of(self, sums: Sequence[Tensor]) -> Tensor:
        """``log_mass`` from the log-sum-exps of the scores in ``sets``. Shape: M tensors (...) -> (...)."""
        masses: list[Tensor] = []
        for level in reversed(self.levels):
            masses = [self._state_mass(edges, sums, masses) for edges in level]
        return masses[0]

    @staticmethod
    def _state_mass(edges: list[Edge], sums: Sequence[Tensor], below: list[Tensor]) -> Tensor:
        parts = []
        for edge in edges:
            mass = sums[edge.number]
            parts.append(mass + below[edge.child] if below else mass)
        return parts[0] if len(parts) == 1 else torch.stack(parts, dim=-1).logsumexp(dim=-1)

    def topk(self, scores: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
        """The k best real tokens of a sum of digit scores, best first.

        Every one of the k best sequences uses digits among the k best of its level and edge, and of two
        sorted lists the pair (i, j) can be among the k best only if (i+1)(j+1) <= k.

        Shape: H tensors (N, L_h) -> (N, min(k, V)) scores and (N, min(k, V)) slots.
        """
        best: list[tuple[Tensor, Tensor]] = []
        stride = 1
        for h in reversed(range(len(self.lengths))):
            best = [self._state_topk(edges, scores[h], best, stride, k) for edges in self.levels[h]]
            stride *= self.lengths[h]
        return best[0]

    @staticmethod
    def _state_topk(
        edges: list[Edge], scores: Tensor, below: list[tuple[Tensor, Tensor]], stride: int, k: int
    ) -> tuple[Tensor, Tensor]:
        values, slots = [], []
        for edge in edges:
            columns = edge.columns.read(scores)
            value, column = columns.topk(min(k, columns.size(-1)), dim=-1)
            slot = edge.digit_of(column) * stride
            if below:
                value, slot = _best_pairs(value, slot, *below[edge.child], k)
            values.append(value)
            slots.append(slot)
        value, slot = torch.cat(values, dim=-1), torch.cat(slots, dim=-1)
        value, order = value.topk(min(k, value.size(-1)), dim=-1)
        return value, slot.gather(-1, order)


def _best_pairs(
    first: Tensor, first_slots: Tensor, second: Tensor, second_slots: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Sums of pairs of two sorted lists that can be among the k best. Shape: (N, a), (N, b) -> (N, p)."""
    rows, columns = _pairs(first.size(-1), second.size(-1), k, first.device)
    return first[:, rows] + second[:, columns], first_slots[:, rows] + second_slots[:, columns]


@lru_cache(maxsize=64)
def _pairs(a: int, b: int, k: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Places in lists of ``a`` and ``b``, (p,) long each: made once, as a device would be waited for."""
    i, j = torch.arange(a).view(-1, 1), torch.arange(b).view(1, -1)
    rows, columns = ((i + 1) * (j + 1) <= k).nonzero(as_tuple=True)
    return rows.to(device), columns.to(device)


def _unique_rows(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct rows that are not all -1, and for every row the number of its distinct row (-1: none)."""
    alive = (table >= 0).any(axis=1)
    rows, inverse = np.unique(_as_bytes(table[alive]), return_inverse=True)
    states = np.full(len(table), -1, dtype=np.int64)
    states[alive] = inverse.reshape(-1)
    distinct = np.empty((len(rows), table.shape[1]), dtype=np.int64)
    distinct[states[alive]] = table[alive]
    return distinct, states


def _as_bytes(table: np.ndarray) -> np.ndarray:
    compact = np.ascontiguousarray(table.astype(np.int32))
    return compact.view(np.dtype((np.void, compact.dtype.itemsize * compact.shape[1]))).reshape(-1)
