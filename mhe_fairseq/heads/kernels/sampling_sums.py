"""What a sampled soft-max makes of its groups' sums: the estimate of the normaliser. Gradients of logits."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.plan import part_of_row

_BIG = tl.constexpr(2**30)


@triton.jit(do_not_specialize=["N", "NP"])
def combine_kernel(
    sums, best, best_at, slot, target, plan, draw, log_weight, mean, log_z, nll, smooth, right, N, NP,
    L: tl.constexpr, R: tl.constexpr, S: tl.constexpr, AT: tl.constexpr, PARTS: tl.constexpr,
    EXACT: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """log Z_hat of every row from the log-sum-exps (1 + S, NP) of its own group and those its part met.

    A group that is met and is the row's own counts once, without a weight. ``right``: nothing scored beats
    the target; with ``EXACT`` the target is what argmax over the vocabulary gives.
    """
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < N
    gold = tl.load(slot + rows, mask=inside, other=0) // L
    part = part_of_row(rows, plan, R, PARTS, BP)
    top = tl.load(sums + rows, mask=inside, other=0.0)
    total = tl.full((BM,), 1.0, tl.float32)
    picked = tl.load(sums + tl.cast(1 + S, tl.int64) * NP + rows, mask=inside, other=0.0)
    highest = picked
    highest_at = tl.zeros((BM,), tl.int32)
    if right is not None:
        highest = tl.load(best + rows, mask=inside, other=0.0)
        highest_at = tl.load(best_at + rows, mask=inside, other=0)
    for c0 in range(0, S, BG):
        c = c0 + tl.arange(0, BG)
        mask = inside[:, None] & (c < S)[None, :]
        group = tl.load(draw + AT + part[:, None] * S + c[None, :], mask=mask, other=-1)
        at = (1 + c).to(tl.int64)[None, :] * NP + rows[:, None]
        value = tl.load(sums + at, mask=mask, other=float("-inf"))
        counts = (group >= 0) & (group != gold[:, None])
        value += tl.load(log_weight + group, mask=counts, other=0.0)
        value = tl.where(counts, value, float("-inf"))
        higher = tl.maximum(top, tl.max(value, 1))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher[:, None]), 1)
        top = higher
        if right is not None:
            # Not of its own group again: another product's rounding could beat the target by itself.
            peaks = tl.load(best + at, mask=counts, other=float("-inf"))
            places = tl.load(best_at + at, mask=counts, other=_BIG)
            peak = tl.max(peaks, 1)
            place = tl.min(tl.where(peaks == peak[:, None], places, _BIG), 1)
            place = tl.where(peak == highest, tl.minimum(place, highest_at), place)
            highest_at = tl.where(peak >= highest, place, highest_at)
            highest = tl.maximum(highest, peak)
    whole = top + tl.log(total)
    tl.store(log_z + rows, whole, mask=inside)
    tl.store(nll + rows, whole - picked, mask=inside)
    if mean is not None:
        tl.store(smooth + rows, whole - tl.load(mean + rows, mask=inside, other=0.0), mask=inside)
    if right is not None:
        is_right = picked >= highest
        if EXACT:
            is_right = highest_at == tl.load(target + rows, mask=inside, other=0)
        tl.store(right + rows, is_right.to(tl.float32), mask=inside)


@triton.jit(do_not_specialize=["N", "nll_stride", "smooth_stride"])
def logits_kernel(
    z, slot, order, plan, draw, log_weight, log_z, d_nll, d_smooth, dz, N, nll_stride, smooth_stride,
    L: tl.constexpr, LP: tl.constexpr, R: tl.constexpr, S: tl.constexpr, AT: tl.constexpr,
    PARTS: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of logits, in their type. Axis 1: blocks."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = r < N
    block = tl.program_id(1)
    rows = r.to(tl.int64)
    if block == 0:
        rows = tl.load(order + r, mask=inside, other=0)
    of_target = tl.load(slot + rows, mask=inside, other=0)
    hot = tl.load(d_nll + rows * nll_stride, mask=inside, other=0.0)
    soft = hot
    if d_smooth is not None:
        soft += tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0)
    shift = tl.load(log_z + rows, mask=inside, other=0.0)
    counts = inside
    column = of_target % L
    if S > 0:
        if block > 0:
            part = part_of_row(r, plan, R, PARTS, BP)
            group = tl.load(draw + AT + part * S + block - 1, mask=inside, other=-1)
            counts = (group >= 0) & (group != of_target // L)
            shift -= tl.load(log_weight + group, mask=counts, other=0.0)
            column = tl.full((BM,), -1, tl.int32)
    z_rows = (r.to(tl.int64) * (1 + S) + block) * LP
    for n0 in range(0, L, BN):
        n = n0 + tl.arange(0, BN)
        inner = (n < LP)[None, :]
        logit = tl.load(
            z + z_rows[:, None] + n[None, :], mask=counts[:, None] & inner, other=float("-inf")
        ).to(tl.float32)  # fmt: skip
        grad = soft[:, None] * tl.exp(logit - shift[:, None])
        grad -= tl.where(n[None, :] == column[:, None], hot[:, None], 0.0)
        tl.store(
            dz + z_rows[:, None] + n[None, :], grad.to(dz.dtype.element_ty), mask=inside[:, None] & inner
        )
