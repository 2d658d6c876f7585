"""Which rows of a batch meet which groups, and in which tiles: made on the device, without waiting for it.

Rows are sorted by the group of their target (more generally by their prefix, all digits but the last). A
range is the rows of one prefix; a tile is at most ``BM`` rows of a range.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from mhe_fairseq.heads.kernels.launch import Tile, cdiv, launch, power_of_2

#: The most ranges that one program can plan.
MOST_RANGES = 16384

_BIG = tl.constexpr(2**30)
#: Up to so many ranges a tile finds its own by reading all of their ends at once.
_AT_ONCE = tl.constexpr(2048)


@triton.jit(do_not_specialize=["N", "NP"])
def keys_kernel(
    target, slots, draw, keys, N, NP,
    LAST: tl.constexpr, SUB: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slot of each target, and at NP what to sort the rows by: the place of its prefix."""
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = n < N
    place = tl.load(slots + tl.load(target + n, mask=inside, other=0), mask=inside, other=0)
    prefix = place // LAST
    if ORDERED:
        prefix = tl.load(draw + prefix // SUB, mask=inside, other=0) * SUB + prefix % SUB
    tl.store(keys + n, place.to(tl.int32), mask=inside)
    tl.store(keys + NP + n, prefix.to(tl.int32), mask=inside)


@triton.jit
def _lower_bound(key, value, N, steps):
    """The first of N sorted keys that is not less than a value, for a block of values."""
    low = tl.zeros_like(value)
    high = tl.zeros_like(value) + N
    for _ in range(steps):
        middle = (low + high) // 2
        less = tl.load(key + middle, mask=middle < high, other=_BIG) < value
        low = tl.where(less, middle + 1, low)
        high = tl.where(less, high, middle)
    return low


@triton.jit(do_not_specialize=["N", "steps"])
def plan_kernel(
    key, draw, plan, N, steps,
    R: tl.constexpr, UNIT: tl.constexpr, L_1: tl.constexpr, PARTS: tl.constexpr, PART_UNIT: tl.constexpr,
    ORDERED: tl.constexpr, BM: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Where ranges begin (R + 1), the tiles up to and with each of them (R), where parts begin (PARTS + 1):
    at ranges of their own with ``ORDERED``, else after as many rows each."""
    i = tl.arange(0, BR)
    low = _lower_bound(key, i * UNIT, N, steps)
    high = _lower_bound(key, i * UNIT + UNIT, N, steps)
    tl.store(plan + i, low, mask=i < R)
    tl.store(plan + R, N)
    ends = tl.cumsum(tl.where(i < R, (high - low + BM - 1) // BM, 0), 0)
    tl.store(ends_of(plan, R) + i, ends, mask=i < R)
    if PARTS > 0:
        p = tl.arange(0, BP)
        if ORDERED:
            begin = tl.load(starts_of(draw, L_1) + p, mask=p <= PARTS, other=0) * PART_UNIT
            begin = _lower_bound(key, begin, N, steps)
        else:
            begin = (p.to(tl.int64) * N // PARTS).to(tl.int32)
        tl.store(parts_of(plan, R) + p, begin, mask=p <= PARTS)


@triton.jit
def ends_of(plan, R: tl.constexpr):
    """Of a plan, the tiles up to and with each range."""
    return plan + (R + 4) // 4 * 4


@triton.jit
def parts_of(plan, R: tl.constexpr):
    """Of a plan, where parts begin."""
    return plan + (R + 4) // 4 * 4 + (R + 3) // 4 * 4


@triton.jit
def group_at_of(draw, L_1: tl.constexpr):
    """Of a draw, the first digit at each place; the place of each first digit is what it begins with."""
    return draw + (L_1 + 3) // 4 * 4


@triton.jit
def starts_of(draw, L_1: tl.constexpr):
    """Of a draw, the place where the first digits of each part begin."""
    return draw + (L_1 + 3) // 4 * 8


@triton.jit
def range_of_tile(t, plan, R: tl.constexpr, BR: tl.constexpr):
    """The range of a tile (R or more: there is no such tile), and its first tile."""
    ends = ends_of(plan, R)
    if BR <= _AT_ONCE:
        i = tl.arange(0, BR)
        end = tl.load(ends + i, mask=i < R, other=_BIG)
        before = end <= t
        index = tl.sum(before.to(tl.int32))
        first = tl.max(tl.where(before, end, 0))
    else:
        index = t * 0
        high = t * 0 + R
        while index < high:
            middle = (index + high) // 2
            before_it = tl.load(ends + middle) <= t
            index = tl.where(before_it, middle + 1, index)
            high = tl.where(before_it, high, middle)
        first = tl.load(ends + index - 1, mask=index > 0, other=0)
    return index, first


@triton.jit
def part_of_tile(t, plan, R: tl.constexpr, PARTS: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr):
    """The part of a tile (PARTS or more: there is no such tile), and its first tile."""
    parts = parts_of(plan, R)
    p = tl.arange(0, BP)
    begin = tl.load(parts + p, mask=p < PARTS, other=0)
    end = tl.load(parts + p + 1, mask=p < PARTS, other=0)
    tiles = tl.cumsum((end - begin + BM - 1) // BM, 0)
    before = tiles <= t
    return tl.sum(before.to(tl.int32)), tl.max(tl.where(before, tiles, 0))


@triton.jit
def part_of_row(r, plan, R: tl.constexpr, PARTS: tl.constexpr, BP: tl.constexpr):
    """The part of each row of a block, counted in the order of the parts."""
    p = tl.arange(0, BP)
    end = tl.load(parts_of(plan, R) + p + 1, mask=p < PARTS, other=_BIG)
    return tl.minimum(tl.sum((end[None, :] <= r[:, None]).to(tl.int32), 1), PARTS - 1)


@triton.jit
def prefix_of_range(i, draw, R: tl.constexpr, SUB: tl.constexpr, ORDERED: tl.constexpr):
    """The prefix whose rows a range has; SUB prefixes begin with each first digit."""
    prefix = i
    if ORDERED:
        prefix = tl.load(group_at_of(draw, R // SUB) + i // SUB) * SUB + i % SUB
    return prefix


@triton.jit
def range_of_prefix(prefix, draw, SUB: tl.constexpr, ORDERED: tl.constexpr):
    """The inverse of ``prefix_of_range``."""
    i = prefix
    if ORDERED:
        i = tl.load(draw + prefix // SUB) * SUB + prefix % SUB
    return i


class Shared(NamedTuple):
    """Prefixes that whole parts of a batch meet: where they are in a draw.

    At ``at`` of the draw are (PARTS * size,) prefixes, those of each part, -1 where a part has fewer; after
    them (E,) the same in order, E a power of 2, the largest numbers being none; then (E,) which of the first
    these are.

    Attributes:
        at: a multiple of 4.
        size: S, prefixes of a part; 0: nothing is met.
        ordered: E.
    """

    at: int = 0
    size: int = 0
    ordered: int = 1


@dataclass(frozen=True, eq=False)
class Draw:
    """What was drawn for a batch.

    No tuple: torch.func would look for tensors in it, and hand those of its transforms to backward passes.

    Attributes:
        numbers: int32, on the device: unless ``levels`` begin at 0, the place (L_1,) of each first digit when
            those of a part stand together, the first digit (L_1,) at each place, and the place (parts + 1,)
            where those of each part begin, each from a multiple of 4 on; then what ``levels`` say.
        parts: number of parts.
        levels: what the parts meet, at each digit after the first.
    """

    numbers: Tensor
    parts: int
    levels: tuple[Shared, ...]

    @classmethod
    def of(cls, part: np.ndarray | None, prefixes: Sequence[np.ndarray], device: torch.device) -> Draw:
        """From the part of each first digit, (L_1,), and (parts, S) prefixes at each level, -1: none.

        Without ``part`` the parts are rows that follow one another. One copy, not waited for.
        """
        pieces: list[np.ndarray] = []
        if part is not None:
            group_at = part.argsort(kind="stable")
            position = np.empty_like(group_at)
            position[group_at] = np.arange(len(part))
            pieces = [position, group_at, np.searchsorted(part[group_at], np.arange(len(prefixes[0]) + 1))]
        levels = []
        for each in prefixes:
            flat = each.reshape(-1)
            order = flat.argsort(kind="stable")
            ordered = np.full(power_of_2(len(flat)), 2**30)
            ordered[: len(flat)] = flat[order]
            entries = np.zeros_like(ordered)
            entries[: len(flat)] = order
            levels.append(Shared(sum(map(_aligned, pieces)), each.shape[1], len(ordered)))
            pieces += [flat, ordered, entries]
        whole = np.zeros(sum(map(_aligned, pieces)), dtype=np.int32)
        begin = 0
        for piece in pieces:
            whole[begin : begin + len(piece)] = piece
            begin += _aligned(piece)
        return cls(torch.from_numpy(whole).to(device, non_blocking=True), len(prefixes[0]), tuple(levels))


def _aligned(piece: np.ndarray) -> int:
    """Numbers up to where the next piece begins, a multiple of 16 bytes: how pointers are aligned is part of
    what is compiled."""
    return cdiv(len(piece), 4) * 4


class Rows(NamedTuple):
    """A batch sorted by prefix.

    Attributes:
        order: (N,) long: the row of each place.
        keys: int32: first, (N,), the slot of each row's target.
        key: (N,) int32, rising: what the rows were sorted by.
    """

    order: Tensor
    keys: Tensor
    key: Tensor


def sort_rows(target: Tensor, slots: Tensor, last: int, below: int, draw: Tensor | None) -> Rows:
    """Sort rows by the prefix of their targets.

    Args:
        target: (N,) long.
        slots: (V,) long, of each token.
        last: values of the last digit, which is no part of the prefix.
        below: prefixes of each first digit.
        draw: what ``Draw.numbers`` begins with, for prefixes in the order of parts.
    """
    n, padded = target.numel(), padded_rows(target.numel())
    keys = torch.empty(2 * padded, dtype=torch.int32, device=target.device)
    launch(
        keys_kernel, (cdiv(n, 256),), (target, slots, draw, keys, n, padded), Tile({"BLOCK": 256}, 4, 1),
        LAST=last, SUB=below, ORDERED=draw is not None,
    )  # fmt: skip
    sorted_key, order = torch.sort(keys[padded : padded + n], stable=True)
    return Rows(order, keys, sorted_key)


def plan_ranges(
    key: Tensor, ranges: int, unit: int, tile_rows: int, parts: int, draw: Tensor | None, groups: int
) -> Tensor:
    """Cut sorted rows into ranges of ``unit`` keys each, ranges into tiles: see ``plan_kernel``.

    Args:
        key: (N,) int32, rising.
        ranges: R.
        unit: keys of a range.
        tile_rows: rows of a tile.
        parts: number of parts, 0: none.
        draw: ``Draw.numbers`` where these tell the parts.
        groups: L_1.
    """
    n = key.numel()
    plan = torch.empty(
        cdiv(ranges + 1, 4) * 4 + cdiv(ranges, 4) * 4 + parts + 1, dtype=torch.int32, device=key.device
    )
    launch(
        plan_kernel, (1,), (key, draw, plan, n, n.bit_length()),
        Tile({"BM": tile_rows}, 4 if ranges <= 1024 else 16, 1),
        R=ranges, UNIT=unit, L_1=groups, PARTS=parts, PART_UNIT=unit * ranges // groups,
        ORDERED=draw is not None, BR=power_of_2(ranges), BP=power_of_2(parts + 1),
    )  # fmt: skip
    return plan


def padded_rows(rows: int) -> int:
    """Numbers of a line of N in a buffer of several: the next line is aligned whatever N."""
    return cdiv(rows, 128) * 128
