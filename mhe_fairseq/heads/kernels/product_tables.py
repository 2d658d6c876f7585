"""What the kernels of a product of digits need to know of a codebook, as tables on the device."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.heads.kernels.launch import power_of_2
from mhe_fairseq.heads.product.lattice import Lattice

#: Most sets of digits, and most paths through the lattice, that kernels are for. Holes in a few patterns, as
#: every codebook of this package has them, take a handful.
MOST_SETS = 64
MOST_PATHS = 64

#: Most components, and most paths of all components together: a program has those of a row at hand.
MOST_MIXTURES = 256
MOST_CELLS = 2048


@dataclass(frozen=True)
class Tables:
    """See ``product_sums`` for the tables. Sets are numbered as in ``Lattice.sets``, but those that are not
    all values of a digit by their level.

    Attributes:
        lengths: (L_1, ..., L_H).
        full: there are no holes.
        sets: M.
        most: LP, the padded width of ``members``.
        path_count: P.
        zero: (1,) fp32, for a gradient that is not there.
    """

    lengths: tuple[int, ...]
    full: bool
    sets: int
    most: int
    path_count: int
    info: Tensor
    members: Tensor
    paths: Tensor
    incidence: Tensor
    mean: Tensor
    zero: Tensor

    @property
    def width(self) -> int:
        """sum(L)."""
        return sum(self.lengths)


def fits(lattice: Lattice, mixtures: int) -> bool:
    """Kernels are for this lattice and so many components."""
    if mixtures > MOST_MIXTURES:
        return False
    if lattice.full:
        return True
    counts = [1]
    for level in reversed(lattice.levels):
        counts = [sum(counts[edge.child] for edge in edges) for edges in level]
    paths = counts[0]
    if len(lattice.sets) > MOST_SETS or paths > MOST_PATHS:
        return False
    return power_of_2(mixtures) * power_of_2(paths) <= MOST_CELLS


def make_tables(lattice: Lattice, codebook: Codebook, device: torch.device) -> Tables:
    """Tables of a codebook whose lattice ``fits``."""
    lengths = lattice.lengths
    heads = len(lengths)
    # All slots are tokens: the digits' own sets are all that is needed.
    sets = lattice.sets[:heads] if lattice.full else lattice.sets
    order = list(range(heads)) + sorted(range(heads, len(sets)), key=lambda i: sets[i].level)
    most = max(lengths)
    members = torch.zeros(len(sets), most, dtype=torch.int8)
    info = torch.zeros(len(sets) + 1, 5, dtype=torch.long)
    others = Counter(each.level for each in sets[heads:])
    for row, number in enumerate(order):
        level, values = sets[number].level, sets[number].values
        members[row, : lengths[level]] = 1
        if values is not None:
            members[row] = 0
            members[row, values] = 1
        divisor = prod(lengths[level + 1 :])
        info[row, :4] = torch.tensor([level, lengths[level], sum(lengths[:level]), divisor])
    for level in range(heads + 1):
        info[level, 4] = heads + sum(others[below] for below in range(level))
    paths = torch.zeros(0, heads, dtype=torch.long) if lattice.full else torch.tensor(_paths(lattice))
    paths = torch.tensor(order).argsort()[paths]
    incidence = torch.zeros(len(sets), power_of_2(len(paths)), dtype=torch.int8)
    for column, path in enumerate(paths):
        incidence[path, column] = 1

    digits = codebook.digits(torch.arange(len(codebook)))
    counts = [torch.bincount(digits[:, h], minlength=length) for h, length in enumerate(lengths)]

    def put(table: Tensor) -> Tensor:
        return table.contiguous().to(device, non_blocking=True)

    return Tables(
        lengths,
        lattice.full,
        len(sets),
        most,
        len(paths),
        put(info),
        put(members),
        put(paths.to(torch.int32)),
        put(incidence),
        put((torch.cat(counts).double() / len(codebook)).float()),
        torch.zeros(1, device=device),
    )


def _paths(lattice: Lattice) -> list[list[int]]:
    """The numbers of the sets along each way from the root to the end: H of them."""
    below: list[list[list[int]]] = [[[]]]
    for level in reversed(lattice.levels):
        below = [[[edge.number, *rest] for edge in edges for rest in below[edge.child]] for edges in level]
    return below[0]
