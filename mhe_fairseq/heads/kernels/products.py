"""Gradients of features and tables from gradients of logits: products with one group's rows at a time.

The logits' gradients ``dz`` are (N, B, LP) as ``scores`` lays logits out: block 0 by sorted place against the
row's own group, the others against the prefixes of its part.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.plan import (
    part_of_tile,
    parts_of,
    prefix_of_range,
    range_of_prefix,
    range_of_tile,
)
from mhe_fairseq.heads.kernels.scores import dot, table_rows


@triton.jit
def _times_rows(
    acc, dz, z_rows, inside, w, tok, base, d,
    D: tl.constexpr, L: tl.constexpr, TIED: tl.constexpr,
    BD: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + dz @ (the rows of the group that begins at slot ``base``); ``dz`` is zero at holes."""
    for n0 in range(0, L, BK):
        n = n0 + tl.arange(0, BK)
        row, real = table_rows(base, n, tok, tok, L, TIED, True)
        a = tl.load(dz + z_rows[:, None] + n[None, :], mask=inside[:, None] & (n < L)[None, :], other=0.0)
        if D % BD == 0:
            b = tl.load(w + row[:, None] * D + d[None, :], mask=real[:, None], other=0.0)
        else:
            b = tl.load(w + row[:, None] * D + d[None, :], mask=real[:, None] & (d < D)[None, :], other=0.0)
        acc = dot(a, b.to(a.dtype), acc, PRECISION)
    return acc


@triton.jit(do_not_specialize=["N", "mean_stride"])
def features_kernel(
    w, tok, dz, order, plan, draw, mean_row, mean_grad, dx, N, mean_stride,
    D: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, R: tl.constexpr, SUB: tl.constexpr, S: tl.constexpr,
    AT: tl.constexpr, PARTS: tl.constexpr, ORDERED: tl.constexpr, NATURAL: tl.constexpr, TIED: tl.constexpr,
    OWN: tl.constexpr, ADD: tl.constexpr, PRECISION: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BD: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Gradient of the features: of each row's own group (``OWN``), or of the prefixes of its part.

    Added to what ``dx`` holds (``ADD``), else to -mean_grad mean_row where there is such a row, else to zero.
    """
    t = tl.program_id(0)
    d = tl.program_id(1) * BD + tl.arange(0, BD)
    prefix = -1
    begin = 0
    end = 0
    p = 0
    if OWN:
        i, first = range_of_tile(t, plan, R, BR)
        if i < R:
            prefix = prefix_of_range(i, draw, R, SUB, ORDERED)
            begin = tl.load(plan + i) + (t - first) * BM
            end = tl.load(plan + i + 1)
    else:
        p, first = part_of_tile(t, plan, R, PARTS, BM, BP)
        if p < PARTS:
            begin = tl.load(parts_of(plan, R) + p) + (t - first) * BM
            end = tl.load(parts_of(plan, R) + p + 1)
    if end > begin:
        r = begin + tl.arange(0, BM)
        inside = r < end
        rows = r.to(tl.int64)
        if OWN or not NATURAL:
            rows = tl.load(order + r, mask=inside, other=0)
        z_rows = r.to(tl.int64) * ((1 + S) * LP)
        acc = tl.zeros((BM, BD), tl.float32)
        if OWN:
            acc = _times_rows(
                acc, dz, z_rows, inside, w, tok, tl.cast(prefix, tl.int64) * L, d,
                D, L, TIED, BD, BK, PRECISION,
            )  # fmt: skip
        else:
            for c in range(S):
                prefix = tl.load(draw + AT + p * S + c)
                if prefix >= 0:
                    acc = _times_rows(
                        acc, dz, z_rows + (1 + c) * LP, inside, w, tok, tl.cast(prefix, tl.int64) * L, d,
                        D, L, TIED, BD, BK, PRECISION,
                    )  # fmt: skip
        at = dx + rows[:, None] * D + d[None, :]
        mask = inside[:, None] & (d < D)[None, :]
        if ADD:
            acc += tl.load(at, mask=mask, other=0.0).to(tl.float32)
        elif mean_row is not None:
            grad = tl.load(mean_grad + rows * mean_stride, mask=inside, other=0.0).to(tl.float32)
            acc -= grad[:, None] * tl.load(mean_row + d, mask=d < D, other=0.0)[None, :]
        tl.store(at, acc.to(dx.dtype.element_ty), mask=mask)


@triton.jit
def _outer(
    acc, dz, z_rows, x, rows, inside, n, d,
    D: tl.constexpr, L: tl.constexpr, BD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """acc + dz^T @ x, of a block of rows."""
    a = tl.load(dz + z_rows[:, None] + n[None, :], mask=inside[:, None] & (n < L)[None, :], other=0.0)
    if D % BD == 0:
        b = tl.load(x + rows[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
    else:
        b = tl.load(x + rows[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0)
    return dot(tl.trans(a), b, acc, PRECISION)


@triton.jit
def table_kernel(
    x, tok, dz, order, plan, draw, every_row, dw,
    D: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, R: tl.constexpr, SUB: tl.constexpr, S: tl.constexpr,
    AT: tl.constexpr, PARTS: tl.constexpr, ORDERED: tl.constexpr, NATURAL: tl.constexpr, TIED: tl.constexpr,
    PRECISION: tl.constexpr, E: tl.constexpr, BL: tl.constexpr, BD: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Gradient of a table: each group's rows written once, zero where no row met the group.

    A program has a tile of one group and goes through the rows that have the group, then through the parts
    that met it. ``every_row`` (D,) is added to the gradient of all rows.
    """
    tiles_d = tl.cdiv(D, BD)
    tiles = tl.cdiv(L, BL) * tiles_d
    prefix = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    n = (tile // tiles_d) * BL + tl.arange(0, BL)
    d = (tile % tiles_d) * BD + tl.arange(0, BD)
    acc = tl.zeros((BL, BD), tl.float32)
    i = range_of_prefix(prefix, draw, SUB, ORDERED)
    end = tl.load(plan + i + 1)
    for r0 in range(tl.load(plan + i), end, BR):
        r = r0 + tl.arange(0, BR)
        inside = r < end
        rows = tl.load(order + r, mask=inside, other=0)
        acc = _outer(acc, dz, r.to(tl.int64) * ((1 + S) * LP), x, rows, inside, n, d, D, L, BD, PRECISION)
    if S > 0:
        ordered = draw + AT + (PARTS * S + 3) // 4 * 4
        met = tl.load(ordered + tl.arange(0, E))
        first = tl.sum((met < prefix).to(tl.int32))
        for e in range(first, first + tl.sum((met == prefix).to(tl.int32))):
            entry = tl.load(ordered + (E + 3) // 4 * 4 + e)
            part = entry // S
            block = 1 + entry % S
            end = tl.load(parts_of(plan, R) + part + 1)
            for r0 in range(tl.load(parts_of(plan, R) + part), end, BR):
                r = r0 + tl.arange(0, BR)
                inside = r < end
                rows = r.to(tl.int64)
                if not NATURAL:
                    rows = tl.load(order + r, mask=inside, other=0)
                z_rows = r.to(tl.int64) * ((1 + S) * LP) + block * LP
                acc = _outer(acc, dz, z_rows, x, rows, inside, n, d, D, L, BD, PRECISION)
    row, real = table_rows(tl.cast(prefix, tl.int64) * L, n, tok, tok, L, TIED, True)
    if every_row is not None:
        acc += tl.load(every_row + d, mask=d < D, other=0.0)[None, :]
    tl.store(
        dw + row[:, None] * D + d[None, :], acc.to(dw.dtype.element_ty), mask=real[:, None] & (d < D)[None, :]
    )
