"""Which groups have so little to do that they are done at once, in parts that stay in a cache.

A turn of a loop over groups takes tens of microseconds on a CPU, whatever there is to do. Where groups are
many and small (labels of documents, tokens beside a shortlist) that is most of the time.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: (group, begin, end): pairs ``begin .. end`` are of ``group``.
Runs = list[tuple[int, int, int]]

#: Parts of the pairs whose groups are light, (p,) long each; and the runs of the others.
Split = tuple[list[Tensor], Runs]

#: Multiply-adds of a group's pairs, up to which a turn of the loop costs more than they do.
_LIGHT = 2**14

#: Numbers of a table that are gathered at a time, if it has so many.
_GATHERED = 2**16

#: Fewer light groups than these are left to the loop.
_WORTH = 4


def split(runs: Runs, size: int, x: Tensor, weight: Tensor) -> Split:
    """Parts of the pairs whose groups are light, and the runs that are not.

    Only on the CPU and in single or double precision: elsewhere adding up pairs of a group one after the
    other would lose digits, or the order that makes a result the same every time.

    Args:
        runs: of all pairs.
        size: numbers of a group's rows, L * d.
        x: features.
        weight: the table.

    Returns:
        (p,) long each, places of pairs, rising; and the other runs.
    """
    usual = (torch.float32, torch.float64)
    if x.device.type != "cpu" or x.dtype not in usual or weight.dtype not in usual:
        return [], runs
    light = [run for run in runs if (run[2] - run[1]) * size <= _LIGHT]
    if len(light) < _WORTH:
        return [], runs
    heavy = [run for run in runs if (run[2] - run[1]) * size > _LIGHT]
    places = torch.tensor([place for _, begin, end in light for place in range(begin, end)])
    at_a_time = min(_GATHERED, weight.numel()) // max(1, size)
    return list(places.split(max(1, at_a_time))), heavy
