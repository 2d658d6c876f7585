"""Logits of rows against the rows of a table that their groups have, and what a loss needs of them."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.plan import part_of_tile, parts_of, prefix_of_range, range_of_tile

_BIG = tl.constexpr(2**30)


@triton.jit
def dot(a, b, acc, PRECISION: tl.constexpr):
    """acc + a @ b in fp32."""
    if PRECISION == "interpreted":
        # The interpreter multiplies the bits of bf16 numbers as if they were whole numbers.
        acc = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision="ieee")
    else:
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def add_logits(top, total, logits):
    """A running maximum and sum of exponentials over it of each row, with a block of logits: (BM,) twice,
    (BM, BN)."""
    higher = tl.maximum(top, tl.max(logits, 1))
    # A first block of holes only has nothing to be compared with.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(top - safe) + tl.sum(tl.exp(logits - safe[:, None]), 1)


@triton.jit
def table_rows(base, n, tok, counts, L: tl.constexpr, TIED: tl.constexpr, FULL: tl.constexpr):
    """Rows of a table for columns ``n`` of the group that begins at slot ``base``, and which are real."""
    real = n < L
    row = base + n
    if TIED:
        row = tl.load(tok + row, mask=real, other=-1).to(tl.int64)
        real = row >= 0
    elif not FULL:
        real = tl.load(counts + row, mask=real, other=0) > 0
    return row, real


@triton.jit
def score_block(
    x, w, tok, counts, z, rows, inside, z_rows, base, column,
    D: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, TIED: tl.constexpr, FULL: tl.constexpr,
    BINARY: tl.constexpr, STORE: tl.constexpr, MEAN: tl.constexpr, BEST: tl.constexpr, BY_TOKEN: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A tile of rows against one group.

    Logits are rounded to the features' type, as a product outside would round them, whether they are stored
    or not; -inf at holes. Returns for each row log-sum-exp, the logit at ``column``, the sum of the logits
    weighted by their tokens (to be divided by their number), the largest logit and where that is first.
    """
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    picked = tl.zeros((BM,), tl.float32)
    mean = tl.zeros((BM,), tl.float32)
    best_at = tl.full((BM,), _BIG, tl.int32)
    for n0 in range(0, L, BN):
        n = n0 + tl.arange(0, BN)
        row, real = table_rows(base, n, tok, counts, L, TIED, FULL)
        acc = tl.zeros((BM, BN), tl.float32)
        for k0 in range(0, D, BK):
            k = k0 + tl.arange(0, BK)
            if D % BK == 0:
                a = tl.load(x + rows[:, None] * D + k[None, :], mask=inside[:, None], other=0.0)
                b = tl.load(w + row[None, :] * D + k[:, None], mask=real[None, :], other=0.0)
            else:
                a = tl.load(
                    x + rows[:, None] * D + k[None, :], mask=inside[:, None] & (k < D)[None, :], other=0.0
                )
                b = tl.load(
                    w + row[None, :] * D + k[:, None], mask=real[None, :] & (k < D)[:, None], other=0.0
                )
            acc = dot(a, b.to(a.dtype), acc, PRECISION)
        logit = acc.to(x.dtype.element_ty).to(tl.float32)
        logit = tl.where(real[None, :], logit, float("-inf"))
        if STORE:
            tl.store(
                z + z_rows[:, None] + n[None, :], logit.to(z.dtype.element_ty),
                mask=inside[:, None] & (n < LP)[None, :],
            )  # fmt: skip
        if BEST:
            peak = tl.max(logit, 1)
            name = tl.where(real, n, _BIG)
            if BY_TOKEN:
                name = tl.where(real, row, _BIG).to(tl.int32)
            at = tl.min(tl.where(logit == peak[:, None], name[None, :], _BIG), 1)
            # Among equals the first counts, as in argmax.
            at = tl.where(peak == top, tl.minimum(at, best_at), at)
            best_at = tl.where(peak >= top, at, best_at)
        top, total = add_logits(top, total, logit)
        if MEAN:
            weighted = tl.where(real[None, :], logit, 0.0)
            if not BINARY:
                weighted *= tl.load(counts + base + n, mask=n < L, other=0).to(tl.float32)[None, :]
            mean += tl.sum(weighted, 1)
        picked += tl.sum(tl.where(n[None, :] == column[:, None], logit, 0.0), 1)
    return top + tl.log(total), picked, mean, top, best_at


@triton.jit(do_not_specialize=["N", "NP", "own_tiles"])
def score_kernel(
    x, w, tok, counts, totals, order, slot, plan, draw, z, sums, best, best_at, N, NP, own_tiles,
    D: tl.constexpr, L: tl.constexpr, LP: tl.constexpr, DIV: tl.constexpr, R: tl.constexpr, SUB: tl.constexpr,
    S: tl.constexpr, AT: tl.constexpr, PARTS: tl.constexpr, ORDERED: tl.constexpr, NATURAL: tl.constexpr,
    TIED: tl.constexpr, FULL: tl.constexpr, BINARY: tl.constexpr, STORE: tl.constexpr, MEAN: tl.constexpr,
    BEST: tl.constexpr, BY_TOKEN: tl.constexpr, PRECISION: tl.constexpr, BR: tl.constexpr, BP: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Every row against its own group (block 0), and against those that its part meets (blocks 1 to S).

    Programs up to ``own_tiles`` have a tile of a range each, those after them a tile of a part and one of its
    S prefixes, which are at ``AT`` of the draw. ``z`` is (N, 1 + S, LP), by place of the row: sorted, or with
    ``NATURAL`` the row itself for blocks of parts. ``sums``, by row: log-sum-exps (1 + S, NP), with ``MEAN``
    mean logits (1 + S, NP), and the logits of targets (NP).
    """
    t = tl.program_id(0)
    block = 0
    prefix = -1
    begin = 0
    end = 0
    if t < own_tiles:
        i, first = range_of_tile(t, plan, R, BR)
        if i < R:
            prefix = prefix_of_range(i, draw, R, SUB, ORDERED)
            begin = tl.load(plan + i) + (t - first) * BM
            end = tl.load(plan + i + 1)
    else:
        if S > 0:
            block = 1 + (t - own_tiles) % S
            tile = (t - own_tiles) // S
            p, first = part_of_tile(tile, plan, R, PARTS, BM, BP)
            if p < PARTS:
                prefix = tl.load(draw + AT + p * S + block - 1)
                begin = tl.load(parts_of(plan, R) + p) + (tile - first) * BM
                end = tl.load(parts_of(plan, R) + p + 1)
    if end > begin:
        r = begin + tl.arange(0, BM)
        inside = r < end
        rows = r.to(tl.int64)
        if not NATURAL:
            rows = tl.load(order + r, mask=inside, other=0)
        elif block == 0:
            rows = tl.load(order + r, mask=inside, other=0)
        if prefix >= 0:
            column = (tl.load(slot + rows, mask=inside, other=0) // DIV) % L
            column = tl.where(block == 0, column, -1)
            z_rows = (r.to(tl.int64) * (1 + S) + block) * LP
            log_sum, picked, mean, top, at = score_block(
                x, w, tok, counts, z, rows, inside, z_rows, tl.cast(prefix, tl.int64) * L, column,
                D, L, LP, TIED, FULL, BINARY, STORE, MEAN, BEST, BY_TOKEN, BM, BN, BK, PRECISION,
            )  # fmt: skip
            tl.store(sums + tl.cast(block, tl.int64) * NP + rows, log_sum, mask=inside)
            if MEAN:
                many = L
                if totals is not None:
                    many = tl.load(totals + prefix)
                tl.store(sums + tl.cast(1 + S + block, tl.int64) * NP + rows, mean / many, mask=inside)
            if block == 0:
                tl.store(sums + tl.cast((1 + MEAN) * (1 + S), tl.int64) * NP + rows, picked, mask=inside)
            if BEST:
                tl.store(best + tl.cast(block, tl.int64) * NP + rows, top, mask=inside)
                tl.store(best_at + tl.cast(block, tl.int64) * NP + rows, at, mask=inside)
        else:
            # A part that drew fewer prefixes than the others.
            nothing = tl.full((BM,), float("-inf"), tl.float32)
            tl.store(sums + tl.cast(block, tl.int64) * NP + rows, nothing, mask=inside)
            if BEST:
                tl.store(best + tl.cast(block, tl.int64) * NP + rows, nothing, mask=inside)
                tl.store(
                    best_at + tl.cast(block, tl.int64) * NP + rows,
                    tl.full((BM,), _BIG, tl.int32),
                    mask=inside,
                )
