"""What a cascade's loss makes of its logits: the first digit's soft-max and the sum over digits. Gradients of
all logits."""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.plan import part_of_row

_BIG = tl.constexpr(2**30)


@triton.jit
def _level(sums, best_at, slot, rows, inside, NP, S: tl.constexpr, DIV: tl.constexpr, L: tl.constexpr,
           SMOOTH: tl.constexpr, BEST: tl.constexpr, BM: tl.constexpr):  # fmt: skip
    """Of one digit: nll, smoothing term, and whether the target's digit is the best."""
    at = sums + rows
    log_sum = tl.load(at, mask=inside, other=0.0)
    nll = log_sum - tl.load(at + tl.cast((1 + (SMOOTH > 0)) * (1 + S), tl.int64) * NP, mask=inside, other=0.0)
    smooth = tl.zeros((BM,), tl.float32)
    if SMOOTH == 2:
        smooth += log_sum - tl.load(at + tl.cast(1 + S, tl.int64) * NP, mask=inside, other=0.0)
    if SMOOTH == 1:
        for c in range(S):
            log_sum = tl.load(at + tl.cast(1 + c, tl.int64) * NP, mask=inside, other=0.0)
            smooth += log_sum - tl.load(at + tl.cast(2 + S + c, tl.int64) * NP, mask=inside, other=0.0)
        smooth /= S
    right = tl.zeros((BM,), tl.float32)
    if BEST:
        column = (tl.load(slot + rows, mask=inside, other=0) // DIV) % L
        right = (tl.load(best_at + rows, mask=inside, other=0) == column).to(tl.float32)
    return nll, smooth, right


@triton.jit
def _merged(zg, at, mask, M: tl.constexpr):
    """Logits of values of the first digit: log-sum-exp of those of their M rows, which stand together."""
    if M == 1:
        return tl.load(zg + at, mask=mask, other=0.0).to(tl.float32)
    else:
        top = tl.load(zg + at * M, mask=mask, other=0.0).to(tl.float32)
        for j in range(1, M):
            top = tl.maximum(top, tl.load(zg + at * M + j, mask=mask, other=0.0).to(tl.float32))
        total = tl.zeros_like(top)
        for j in range(M):
            total += tl.exp(tl.load(zg + at * M + j, mask=mask, other=0.0).to(tl.float32) - top)
        return top + tl.log(total)


@triton.jit(do_not_specialize=["N", "NP"])
def combine_kernel(
    zg, group_counts, slot, sums_1, best_at_1, sums_2, best_at_2, nll, smooth, out, N, NP,
    G: tl.constexpr, M: tl.constexpr, BELOW: tl.constexpr, V: tl.constexpr, S: tl.constexpr,
    DIV_1: tl.constexpr, L_1: tl.constexpr, DIV_2: tl.constexpr, L_2: tl.constexpr,
    SMOOTH: tl.constexpr, BEST: tl.constexpr, BM: tl.constexpr, BG: tl.constexpr,
):  # fmt: skip
    """Soft-max of the first digit's logits, made of those of its rows (N, G M), and the loss.

    ``SMOOTH``: 0 without, 1 on the prefixes that parts meet, 2 on a row's own. ``out`` is (7, NP): nll of the
    first digit and of those after it (3), whether these are right (3), log-sum-exp of the first digit.
    """
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < N
    gold = tl.load(slot + rows, mask=inside, other=0) // BELOW
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    mean = tl.zeros((BM,), tl.float32)
    picked = tl.zeros((BM,), tl.float32)
    best_at = tl.full((BM,), _BIG, tl.int32)
    for g0 in range(0, G, BG):
        g = g0 + tl.arange(0, BG)
        count = tl.load(group_counts + g, mask=g < G, other=0)
        raw = _merged(zg, rows[:, None] * G + g[None, :], inside[:, None] & (g < G)[None, :], M)
        logit = tl.where((count > 0)[None, :], raw, float("-inf"))
        peak = tl.max(logit, 1)
        if BEST:
            at = tl.min(tl.where(logit == peak[:, None], g[None, :], _BIG), 1)
            best_at = tl.where(peak > top, at, best_at)
        higher = tl.maximum(top, peak)
        safe = tl.where(higher == float("-inf"), 0.0, higher)
        total = total * tl.exp(top - safe) + tl.sum(tl.exp(logit - safe[:, None]), 1)
        top = higher
        if SMOOTH > 0:
            mean += tl.sum(raw * (count.to(tl.float32) / V)[None, :], 1)
        picked += tl.sum(tl.where(g[None, :] == gold[:, None], logit, 0.0), 1)
    log_sum = top + tl.log(total)
    of_group = log_sum - picked
    of_level, smoothed, right = _level(
        sums_1, best_at_1, slot, rows, inside, NP, S, DIV_1, L_1, SMOOTH, BEST, BM
    )
    whole = of_group + of_level
    tl.store(out + rows, of_group, mask=inside)
    tl.store(out + NP + rows, of_level, mask=inside)
    if BEST:
        tl.store(out + tl.cast(NP, tl.int64) * 3 + rows, (best_at == gold).to(tl.float32), mask=inside)
        tl.store(out + tl.cast(NP, tl.int64) * 4 + rows, right, mask=inside)
    if sums_2 is not None:
        of_level, more, right = _level(
            sums_2, best_at_2, slot, rows, inside, NP, S, DIV_2, L_2, SMOOTH, BEST, BM
        )
        whole += of_level
        smoothed += more
        tl.store(out + tl.cast(NP, tl.int64) * 2 + rows, of_level, mask=inside)
        if BEST:
            tl.store(out + tl.cast(NP, tl.int64) * 5 + rows, right, mask=inside)
    tl.store(out + tl.cast(NP, tl.int64) * 6 + rows, log_sum, mask=inside)
    tl.store(nll + rows, whole, mask=inside)
    if SMOOTH > 0:
        tl.store(smooth + rows, log_sum - mean + smoothed, mask=inside)


@triton.jit(do_not_specialize=["N", "NP", "nll_stride", "smooth_stride"])
def logits_kernel(
    zg, group_counts, group_log_sum, z, counts, totals, slot, order, plan, draw, sums, d_nll, d_smooth,
    dzg, dz, N, NP, nll_stride, smooth_stride,
    G: tl.constexpr, M: tl.constexpr, BELOW: tl.constexpr, V: tl.constexpr, L: tl.constexpr, LP: tl.constexpr,
    DIV: tl.constexpr, R: tl.constexpr, S: tl.constexpr, AT: tl.constexpr, PARTS: tl.constexpr,
    SMOOTH: tl.constexpr, BINARY: tl.constexpr, BP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Gradients of logits, in their type. Axis 1: blocks of one digit after the first, and where ``dzg`` is
    there, last, the first digit."""
    r = tl.program_id(0) * BM + tl.arange(0, BM)
    inside = r < N
    block = tl.program_id(1)
    if block == 1 + S:
        rows = r.to(tl.int64)
        a = tl.load(d_nll + rows * nll_stride, mask=inside, other=0.0)
        b = tl.zeros((BM,), tl.float32)
        if SMOOTH > 0:
            b = tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0)
        gold = tl.load(slot + rows, mask=inside, other=0) // BELOW
        log_sum = tl.load(group_log_sum + rows, mask=inside, other=0.0)
        for g0 in range(0, G, BN):
            g = g0 + tl.arange(0, BN)
            mask = inside[:, None] & (g < G)[None, :]
            count = tl.load(group_counts + g, mask=g < G, other=0)
            first_at = rows[:, None] * G + g[None, :]
            logit = _merged(zg, first_at, mask, M)
            p = tl.where((count > 0)[None, :], tl.exp(logit - log_sum[:, None]), 0.0)
            grad = (a + b)[:, None] * p - tl.where(g[None, :] == gold[:, None], a[:, None], 0.0)
            grad -= b[:, None] * (count.to(tl.float32) / V)[None, :]
            if M == 1:
                tl.store(dzg + first_at, grad.to(dzg.dtype.element_ty), mask=mask)
            else:
                for j in range(M):
                    of_row = tl.load(zg + first_at * M + j, mask=mask, other=0.0).to(tl.float32)
                    of_row = grad * tl.exp(of_row - logit)
                    tl.store(dzg + first_at * M + j, of_row.to(dzg.dtype.element_ty), mask=mask)
    else:
        rows = tl.load(order + r, mask=inside, other=0)
        of_target = tl.load(slot + rows, mask=inside, other=0) // DIV
        column = of_target % L
        prefix = of_target // L
        soft = tl.zeros((BM,), tl.float32)
        hot = tl.zeros((BM,), tl.float32)
        even = tl.zeros((BM,), tl.float32)
        if block == 0:
            hot = tl.load(d_nll + rows * nll_stride, mask=inside, other=0.0)
            soft = hot
            if SMOOTH == 2:
                even = tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0)
                soft = hot + even
        else:
            if SMOOTH == 1:
                even = tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0) / S
                soft = even
                part = part_of_row(r, plan, R, PARTS, BP)
                prefix = tl.load(draw + AT + part * S + block - 1, mask=inside, other=0)
        log_sum = tl.load(sums + tl.cast(block, tl.int64) * NP + rows, mask=inside, other=0.0)
        if totals is not None:
            even = even / tl.load(totals + prefix, mask=inside, other=1).to(tl.float32)
        else:
            even = even / L
        z_rows = (r.to(tl.int64) * (1 + S) + block) * LP
        for n0 in range(0, L, BN):
            n = n0 + tl.arange(0, BN)
            mask = inside[:, None] & (n < LP)[None, :]
            logit = tl.load(z + z_rows[:, None] + n[None, :], mask=mask, other=float("-inf")).to(tl.float32)
            grad = soft[:, None] * tl.exp(logit - log_sum[:, None])
            grad -= tl.where(n[None, :] == column[:, None], hot[:, None], 0.0)
            if SMOOTH > 0:
                share = tl.where(logit > float("-inf"), even[:, None], 0.0)
                if not BINARY:
                    at = tl.cast(prefix, tl.int64)[:, None] * L + n[None, :]
                    many = tl.load(counts + at, mask=inside[:, None] & (n < L)[None, :], other=0)
                    share = even[:, None] * many.to(tl.float32)
                grad -= share
            tl.store(dz + z_rows[:, None] + n[None, :], grad.to(dz.dtype.element_ty), mask=mask)
