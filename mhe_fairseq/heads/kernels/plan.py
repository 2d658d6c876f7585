"""Which rows of a batch meet which groups, and in which tiles: made on the device, without waiting for it.

Rows are sorted by the group of their target (more generally by their prefix, all digits but the last). A
range is the rows of one prefix; a tile is at most ``BM`` rows of a range.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

from collections.abc import Sequence
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


@triton.jit(do_not_specialize=["N"])
def keys_kernel(
    target, slots, position, slot, key, N,
    LAST: tl.constexpr, SUB: tl.constexpr, ORDERED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Slot of each target, and what to sort the rows by: the place of its prefix."""
    n = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    inside = n < N
    place = tl.load(slots + tl.load(target + n, mask=inside, other=0), mask=inside, other=0)
    prefix = place // LAST
    if ORDERED:
        prefix = tl.load(position + prefix // SUB, mask=inside, other=0) * SUB + prefix % SUB
    tl.store(slot + n, place.to(tl.int32), mask=inside)
    tl.store(key + n, prefix.to(tl.int32), mask=inside)


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
    key, starts, begins, ends, parts, N, steps,
    R: tl.constexpr, UNIT: tl.constexpr, PARTS: tl.constexpr, PART_UNIT: tl.constexpr,
    BM: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
):  # fmt: skip
    """Where ranges begin (R + 1), the tiles up to and with each of them (R), where parts begin (PARTS + 1)."""
    i = tl.arange(0, BR)
    low = _lower_bound(key, i * UNIT, N, steps)
    high = _lower_bound(key, i * UNIT + UNIT, N, steps)
    tl.store(begins + i, low, mask=i < R)
    tl.store(begins + R, N)
    tl.store(ends + i, tl.cumsum(tl.where(i < R, (high - low + BM - 1) // BM, 0), 0), mask=i < R)
    if PARTS > 0:
        p = tl.arange(0, BP)
        first = tl.load(starts + p, mask=p <= PARTS, other=0) * PART_UNIT
        tl.store(parts + p, _lower_bound(key, first, N, steps), mask=p <= PARTS)


@triton.jit
def range_of_tile(t, ends, R: tl.constexpr, BR: tl.constexpr):
    """The range of a tile (R or more: there is no such tile), and its first tile."""
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
def part_of_tile(t, parts, PARTS: tl.constexpr, BM: tl.constexpr, BP: tl.constexpr):
    """The part of a tile (PARTS or more: there is no such tile), and its first tile."""
    p = tl.arange(0, BP)
    begin = tl.load(parts + p, mask=p < PARTS, other=0)
    end = tl.load(parts + p + 1, mask=p < PARTS, other=0)
    tiles = tl.cumsum((end - begin + BM - 1) // BM, 0)
    before = tiles <= t
    return tl.sum(before.to(tl.int32)), tl.max(tl.where(before, tiles, 0))


@triton.jit
def part_of_row(r, parts, PARTS: tl.constexpr, BP: tl.constexpr):
    """The part of each row of a block, counted in the order of the parts."""
    p = tl.arange(0, BP)
    end = tl.load(parts + p + 1, mask=p < PARTS, other=_BIG)
    return tl.minimum(tl.sum((end[None, :] <= r[:, None]).to(tl.int32), 1), PARTS - 1)


@triton.jit
def prefix_of_range(i, group_at, SUB: tl.constexpr, ORDERED: tl.constexpr):
    """The prefix whose rows a range has."""
    prefix = i
    if ORDERED:
        prefix = tl.load(group_at + i // SUB) * SUB + i % SUB
    return prefix


@triton.jit
def range_of_prefix(prefix, position, SUB: tl.constexpr, ORDERED: tl.constexpr):
    """The inverse of ``prefix_of_range``."""
    i = prefix
    if ORDERED:
        i = tl.load(position + prefix // SUB) * SUB + prefix % SUB
    return i


class Shared(NamedTuple):
    """Prefixes that whole parts of a batch meet, on the device, int32.

    Attributes:
        prefixes: (PARTS * S,): of each part; -1: none.
        sorted_prefixes: (E,): the same in order, E a power of 2; the largest numbers are none.
        entries: (E,): which of ``prefixes`` these are.
        count: S.
    """

    prefixes: Tensor
    sorted_prefixes: Tensor
    entries: Tensor
    count: int


class Draw(NamedTuple):
    """What was drawn for a batch, on the device, int32.

    Attributes:
        position: (L_1,): the place of each first digit when those of a part stand together.
        group_at: (L_1,): its inverse.
        starts: (PARTS + 1,): where the first digits of each part begin.
        levels: what the parts meet, at each digit after the first.
    """

    position: Tensor
    group_at: Tensor
    starts: Tensor
    levels: tuple[Shared, ...]

    @property
    def parts(self) -> int:
        return self.starts.numel() - 1

    @classmethod
    def of(cls, part: np.ndarray, prefixes: Sequence[np.ndarray], device: torch.device) -> Draw:
        """From the part of each first digit, (L_1,), and (PARTS, S) prefixes at each level: one copy."""
        count = len(prefixes[0])
        group_at = part.argsort(kind="stable")
        position = np.empty_like(group_at)
        position[group_at] = np.arange(len(part))
        starts = np.searchsorted(part[group_at], np.arange(count + 1))
        pieces = [position, group_at, starts]
        for each in prefixes:
            pieces += sorted_entries(each)
        on_device = packed(pieces, device)
        levels = [
            Shared(*on_device[3 + 3 * h : 6 + 3 * h], each.shape[1]) for h, each in enumerate(prefixes)
        ]
        return cls(*on_device[:3], tuple(levels))


def sorted_entries(prefixes: np.ndarray) -> list[np.ndarray]:
    """The tensors of ``Shared``, of (PARTS, S) prefixes."""
    flat = prefixes.reshape(-1)
    padding = power_of_2(len(flat)) - len(flat)
    order = flat.argsort(kind="stable")
    entries = np.concatenate([order, np.zeros(padding, dtype=order.dtype)])
    return [flat, np.concatenate([flat[order], np.full(padding, 2**30)]), entries]


def packed(pieces: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """Copy whole numbers to a device as int32, all at once and without waiting for it."""
    # Each begins at a multiple of 16 bytes: where a pointer is aligned is part of what is compiled.
    sizes = [cdiv(len(piece), 4) * 4 for piece in pieces]
    whole = np.zeros(sum(sizes), dtype=np.int32)
    begins = [sum(sizes[:i]) for i in range(len(sizes))]
    for begin, piece in zip(begins, pieces, strict=True):
        whole[begin : begin + len(piece)] = piece
    moved = torch.from_numpy(whole).to(device, non_blocking=True)
    return [moved[begin : begin + len(piece)] for begin, piece in zip(begins, pieces, strict=True)]


class Rows(NamedTuple):
    """A batch sorted by prefix.

    Attributes:
        order: (N,) long: the row of each place.
        slot: (N,) int32, of each row's target.
        key: (N,) int32, rising: what the rows were sorted by.
    """

    order: Tensor
    slot: Tensor
    key: Tensor


class Ranges(NamedTuple):
    """Ranges of sorted rows and their tiles, int32.

    Attributes:
        begins: (R + 1,): the first place of each range, and N.
        ends: (R,): tiles up to and with each range.
        parts: (PARTS + 1,): the first place of each part, and N; (0,) without parts.
    """

    begins: Tensor
    ends: Tensor
    parts: Tensor


def sort_rows(
    target: Tensor, slots: Tensor, last: int, below: int, position: Tensor | None
) -> Rows:
    """Sort rows by the prefix of their targets.

    Args:
        target: (N,) long.
        slots: (V,) long, of each token.
        last: values of the last digit, which is no part of the prefix.
        below: prefixes of each first digit.
        position: (L_1,) int32, a place of each first digit; None: in order.
    """
    n = target.numel()
    # Two blocks of one allocation, the second aligned whatever N is.
    padded = cdiv(n, 128) * 128
    both = torch.empty(2 * padded, dtype=torch.int32, device=target.device)
    slot, key = both[:n], both[padded : padded + n]
    launch(
        keys_kernel, (cdiv(n, 256),), (target, slots, position, slot, key, n),
        Tile({"BLOCK": 256}, 4, 1), LAST=last, SUB=below, ORDERED=position is not None,
    )  # fmt: skip
    sorted_key, order = torch.sort(key, stable=True)
    return Rows(order, slot, sorted_key)


def plan_ranges(
    key: Tensor, ranges: int, unit: int, tile_rows: int, starts: Tensor | None = None, part_unit: int = 1
) -> Ranges:
    """Ranges of ``unit`` keys each.

    Args:
        key: (N,) int32, rising.
        ranges: R.
        unit: keys of a range.
        tile_rows: rows of a tile.
        starts: (PARTS + 1,) int32: where parts begin, in units of ``part_unit`` keys.
        part_unit: see ``starts``.
    """
    n, parts = key.numel(), 0 if starts is None else starts.numel() - 1
    first, second = cdiv(ranges + 1, 4) * 4, cdiv(ranges, 4) * 4
    whole = torch.empty(first + second + parts + 1, dtype=torch.int32, device=key.device)
    result = Ranges(whole[: ranges + 1], whole[first : first + ranges], whole[first + second :])
    launch(
        plan_kernel, (1,), (key, starts, *result, n, n.bit_length()),
        Tile({"BM": tile_rows}, 4 if ranges <= 1024 else 16, 1),
        R=ranges, UNIT=unit, PARTS=parts, PART_UNIT=part_unit,
        BR=power_of_2(ranges), BP=power_of_2(parts + 1),
    )  # fmt: skip
    return result
