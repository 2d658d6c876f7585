"""Rows of a batch against a table's rows of their groups: launches of ``scores`` and ``products``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2, precision
from mhe_fairseq.heads.kernels.plan import Draw, Rows, Shared, padded_rows
from mhe_fairseq.heads.kernels.products import features_kernel, table_kernel
from mhe_fairseq.heads.kernels.scores import score_kernel
from mhe_fairseq.heads.kernels.tiles import tile_of


@dataclass(frozen=True, eq=False)
class LevelTables:
    """P prefixes, each followed by one of L digits, some of which have tokens; int32 on the device.

    Attributes:
        prefixes: P.
        length: L.
        tokens: (P * L,): a slot's row of a (V, d) table, -1 at holes; None: the table is (P, L, d).
        counts: (P * L,): tokens below each digit; None: all digits have as many, or ``tokens`` tells holes.
        totals: (P,): what a mean over a prefix's digits is divided by; None: L.
        is_binary: a digit counts as one or not at all in such a mean.
    """

    prefixes: int
    length: int
    tokens: Tensor | None
    counts: Tensor | None
    totals: Tensor | None
    is_binary: bool

    @property
    def padded(self) -> int:
        """Stored logits of a row and prefix: a multiple of 16, so that rows begin aligned."""
        return cdiv(self.length, 16) * 16


class Meeting(NamedTuple):
    """Which rows meet which prefixes.

    Attributes:
        rows: of the batch, sorted.
        plan: int32, of ``plan_ranges``.
        draw: what parts of the batch meet, None: nothing.
        shared: where that is for this level.
        below: prefixes of this level with the same first digit.
        is_sorted: parts are of sorted rows, not of rows in order.
    """

    rows: Rows
    plan: Tensor
    draw: Draw | None
    shared: Shared
    below: int
    is_sorted: bool

    @property
    def parts(self) -> int:
        return 0 if self.draw is None else self.draw.parts

    @property
    def numbers(self) -> Tensor | None:
        return None if self.draw is None else self.draw.numbers

    def constants(self, level: LevelTables) -> dict[str, int | bool]:
        """Of every kernel that has tiles of this."""
        is_ordered = self.is_sorted and self.draw is not None
        return {
            "L": level.length, "LP": level.padded, "R": level.prefixes, "SUB": self.below,
            "S": self.shared.size, "AT": self.shared.at, "PARTS": self.parts, "ORDERED": is_ordered,
            "NATURAL": not self.is_sorted, "TIED": level.tokens is not None,
        }  # fmt: skip

    def tiles_of_parts(self, height: int) -> int:
        """At most so many tiles cover all parts."""
        return len(self.rows.order) // height + self.parts


class Scores(NamedTuple):
    """See ``score_kernel``; ``best`` and ``best_at`` (blocks, NP) are None where they are not asked for."""

    z: Tensor
    sums: Tensor
    best: Tensor | None
    best_at: Tensor | None


def height_of(x: Tensor, level: LevelTables, met: int) -> int:
    """Rows of a tile: ranges are cut into such tiles once, for ``score`` and ``features_grad``.

    Args:
        x: the features.
        level: see there.
        met: prefixes that a row meets beside its own.
    """
    return tile_of("score", x.dtype, level.prefixes, met).constants["BM"]


def score(
    level: LevelTables,
    meeting: Meeting,
    source: Tensor,
    table: Tensor,
    divisor: int = 1,
    keep: bool = True,
    mean: bool = False,
    best: bool = False,
    by_token: bool = False,
) -> Scores:
    """Logits of every row against its own prefix and those its part meets, and their sums.

    Args:
        level, meeting: see there.
        source: (N, d).
        table: (P, L, d), or (V, d) where ``level.tokens`` is given.
        divisor: slots below a digit: a target's digit is its slot // divisor % L.
        keep: store the logits; else ``z`` is (0,).
        mean: also mean logits.
        best: also the largest logit and where it is, as digit or ``by_token``.
    """
    n, blocks = len(source), 1 + meeting.shared.size
    padded = padded_rows(n)
    z = source.new_empty(n if keep else 0, blocks, level.padded)
    sums = source.new_empty((1 + mean) * blocks + 1, padded, dtype=torch.float32)
    peaks = places = None
    if best:
        peaks = torch.empty_like(sums[:blocks])
        places = torch.empty_like(peaks, dtype=torch.int32)
    tile = tile_of("score", source.dtype, level.prefixes, meeting.shared.size)
    height = tile.constants["BM"]
    own_tiles = n // height + min(n, level.prefixes)
    launch(
        score_kernel, (own_tiles + meeting.tiles_of_parts(height) * meeting.shared.size,),
        (
            source, table, level.tokens, level.counts, level.totals, meeting.rows.order, meeting.rows.keys,
            meeting.plan, meeting.numbers, z, sums, peaks, places, n, padded, own_tiles,
        ),
        tile, D=source.size(1), DIV=divisor, FULL=level.counts is None, BINARY=level.is_binary, STORE=keep,
        MEAN=int(mean), BEST=best, BY_TOKEN=by_token, PRECISION=precision(source.dtype),
        BR=power_of_2(level.prefixes), BP=power_of_2(meeting.parts), **meeting.constants(level),
    )  # fmt: skip
    return Scores(z, sums, peaks, places)


def features_grad(
    level: LevelTables,
    meeting: Meeting,
    table: Tensor,
    dz: Tensor,
    into: Tensor,
    add: bool,
    mean: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Write the gradient of ``score``'s source into (N, d), or add it to what is there.

    Args:
        level, meeting, table: as for ``score``.
        dz: gradient of its logits.
        into: (N, d).
        add: to what ``into`` holds.
        mean: a row (d,) fp32, and the gradient (N,) of minus its product with the source.
    """
    n, dim = into.shape
    met = meeting.shared.size
    tile, height = tile_of("features", into.dtype, level.prefixes, met), height_of(into, level, met)
    row, grad = (None, None) if mean is None else mean
    for is_own in (True, False) if met else (True,):
        tiles = n // height + min(n, level.prefixes) if is_own else meeting.tiles_of_parts(height)
        launch(
            features_kernel, (tiles, cdiv(dim, tile.constants["BD"])),
            (
                table, level.tokens, dz, meeting.rows.order, meeting.plan, meeting.numbers, row, grad, into,
                n, 0 if grad is None else grad.stride(0),
            ),
            tile, D=dim, OWN=is_own, ADD=add or not is_own, PRECISION=precision(into.dtype),
            BM=height, BR=power_of_2(level.prefixes), BP=power_of_2(meeting.parts),
            **meeting.constants(level),
        )  # fmt: skip


def table_grad(
    level: LevelTables,
    meeting: Meeting,
    source: Tensor,
    table: Tensor,
    dz: Tensor,
    every_row: Tensor | None = None,
) -> Tensor:
    """Gradient of ``score``'s table, in its type and shape; ``every_row`` (d,) fp32 is added to all rows."""
    grad = torch.empty_like(table)
    tile = tile_of("table", source.dtype, level.prefixes, meeting.shared.size)
    tiles = cdiv(level.length, tile.constants["BL"]) * cdiv(source.size(1), tile.constants["BD"])
    launch(
        table_kernel, (level.prefixes * tiles,),
        (source, level.tokens, dz, meeting.rows.order, meeting.plan, meeting.numbers, every_row, grad),
        tile, D=source.size(1), PRECISION=precision(source.dtype), E=meeting.shared.ordered,
        **meeting.constants(level),
    )  # fmt: skip
    return grad
