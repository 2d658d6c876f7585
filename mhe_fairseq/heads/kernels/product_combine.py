"""Kernels that make a loss of the sums over digits of K components, and the gradients of these sums.

For what they read see ``product_sums``. A program has all components of a few rows.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.product_sums import digits_of


@triton.jit
def _log_sum_exp(x, AXIS: tl.constexpr):
    top = tl.max(x, AXIS)
    top = tl.where(top == float("-inf"), 0.0, top)
    return top + tl.log(tl.sum(tl.exp(x - tl.expand_dims(top, AXIS)), AXIS))


@triton.jit
def _log_gate(gate, rows, inside, ks, K: tl.constexpr):
    """(rows, components), -inf beyond K."""
    at = gate + rows[:, None] * K + ks[None, :]
    x = tl.load(at, mask=inside[:, None] & (ks < K)[None, :], other=0.0).to(tl.float32)
    x = tl.where((ks < K)[None, :], x, float("-inf"))
    return x - _log_sum_exp(x, 1)[:, None]


@triton.jit
def _prior(
    parts, gate, rows, inside, ks,
    K: tl.constexpr, H: tl.constexpr, M: tl.constexpr, F: tl.constexpr, GATED: tl.constexpr,
):  # fmt: skip
    """log pi_k, the same less the digits' log-sum-exps, and the sum of the own logits."""
    at = parts + (rows[:, None] * K + ks[None, :]) * F
    both = inside[:, None] & (ks < K)[None, :]
    own = tl.load(at + M, mask=both, other=0.0)
    mass = tl.load(at, mask=both, other=0.0)
    for h in tl.static_range(1, H):
        own += tl.load(at + M + h, mask=both, other=0.0)
        mass += tl.load(at + h, mask=both, other=0.0)
    log_gate = tl.zeros_like(own)
    if GATED:
        log_gate = _log_gate(gate, rows, inside, ks, K)
    return log_gate, log_gate - mass, own


@triton.jit
def _path_sums(
    parts, paths, rows, inside, ks, ps,
    K: tl.constexpr, H: tl.constexpr, F: tl.constexpr, P: tl.constexpr,
):  # fmt: skip
    """For every path through the lattice the sum of its sets' log-sum-exps: (rows, components, paths)."""
    at = parts + ((rows[:, None] * K + ks[None, :]) * F)[:, :, None]
    all3 = (inside[:, None] & (ks < K)[None, :])[:, :, None] & (ps < P)[None, None, :]
    first = tl.load(paths + ps * H, mask=ps < P, other=0)
    total = tl.load(at + first[None, None, :], mask=all3, other=0.0)
    for h in tl.static_range(1, H):
        number = tl.load(paths + ps * H + h, mask=ps < P, other=0)
        total += tl.load(at + number[None, None, :], mask=all3, other=0.0)
    return tl.where((ps < P)[None, None, :], total, float("-inf"))


@triton.jit
def _joint_of_drawn(
    prior, z, drawn, slots, info, vocab, rows, inside, ks, ss, S,
    K: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """``prior`` plus the logits of drawn tokens' digits: (rows, components, tokens)."""
    tokens = tl.load(drawn + ss, mask=ss < S, other=0)
    all3 = (inside[:, None] & (ks < K)[None, :])[:, :, None] & (ss < S)[None, None, :]
    joint = prior[:, :, None] + tl.zeros_like(ss).to(tl.float32)[None, None, :]
    for h in tl.static_range(H):
        length = tl.load(info + h * 5 + 1)
        digit = digits_of(tokens, ss < S, slots, vocab, tl.load(info + h * 5 + 3), length)
        column = (tl.load(info + h * 5 + 2) * K + ks[:, None] * length) + tl.maximum(digit, 0)[None, :]
        at = z + (rows * W)[:, None, None] + column[None, :, :]
        joint += tl.load(at, mask=all3, other=0.0).to(tl.float32)
    return joint


@triton.jit(do_not_specialize=["n", "total_rows", "vocab"])
def combine(
    z, parts, gate, drawn, slots, info, paths, nll, smooth, stats, n, total_rows, vocab,
    K: tl.constexpr, H: tl.constexpr, M: tl.constexpr, F: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    S: tl.constexpr, GATED: tl.constexpr, FULL: tl.constexpr, SMOOTH: tl.constexpr,
    BM: tl.constexpr, KP: tl.constexpr, PP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """``parts`` -> nll (N,), smooth (N,), and the digits' marginal nll: (H, total_rows). All components and
    paths of some rows, a chunk of the drawn tokens at a time."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < n
    ks = tl.arange(0, KP)
    log_gate, prior, own = _prior(parts, gate, rows, inside, ks, K, H, M, F, GATED)
    mass = tl.zeros((BM,), tl.float32)
    if not FULL:
        sums = _path_sums(parts, paths, rows, inside, ks, tl.arange(0, PP), K, H, F, P)
        mass = _log_sum_exp(prior + _log_sum_exp(sums, 2), 1)
    tl.store(nll + rows, mass - _log_sum_exp(prior + own, 1), mask=inside)
    at = parts + (rows[:, None] * K + ks[None, :]) * F
    both = inside[:, None] & (ks < K)[None, :]
    for h in tl.static_range(H):
        log_p = tl.load(at + M + h, mask=both, other=0.0) - tl.load(at + h, mask=both, other=0.0)
        tl.store(stats + h * total_rows + rows, -_log_sum_exp(log_gate + log_p, 1), mask=inside)
    if SMOOTH:
        if GATED:
            mean = tl.zeros((BM,), tl.float32)
            for start in range(0, S, BS):
                ss = start + tl.arange(0, BS)
                joint = _joint_of_drawn(prior, z, drawn, slots, info, vocab, rows, inside, ks, ss, S, K, H, W)
                mean += tl.sum(tl.where((ss < S)[None, :], _log_sum_exp(joint, 1), 0.0), 1)
            tl.store(smooth + rows, mass - mean / S, mask=inside)
        else:
            mean = tl.sum(prior, 1)
            for h in tl.static_range(H):
                mean += tl.load(parts + rows * F + (M + H + h), mask=inside, other=0.0)
            tl.store(smooth + rows, mass - mean, mask=inside)


@triton.jit(
    do_not_specialize=["n", "nll_stride", "smooth_stride", "vocab"],
    do_not_specialize_on_alignment=["d_nll", "d_smooth"],
)
def combine_backward(
    z, parts, gate, drawn, slots, info, paths, incidence, d_nll, d_smooth, d_parts, d_gate, shares,
    n, nll_stride, smooth_stride, vocab,
    K: tl.constexpr, H: tl.constexpr, M: tl.constexpr, F: tl.constexpr, W: tl.constexpr, P: tl.constexpr,
    S: tl.constexpr, SP: tl.constexpr, GATED: tl.constexpr, FULL: tl.constexpr, SMOOTH: tl.constexpr,
    BM: tl.constexpr, KP: tl.constexpr, PP: tl.constexpr, BS: tl.constexpr,
):  # fmt: skip
    """Gradients of the numbers in ``parts``: (N, K, M + 1), those of the sums and the one of all own logits;
    of the gate's logits (N, K); and each component's share of the drawn tokens, ``shares`` (N, K, SP)."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < n
    ks = tl.arange(0, KP)
    both = inside[:, None] & (ks < K)[None, :]
    cells = rows[:, None] * K + ks[None, :]
    log_gate, prior, own = _prior(parts, gate, rows, inside, ks, K, H, M, F, GATED)
    slope = tl.load(d_nll + rows * nll_stride, mask=inside, other=0.0).to(tl.float32)
    joint_own = prior + own
    d_own = -slope[:, None] * tl.exp(joint_own - _log_sum_exp(joint_own, 1)[:, None])
    d_prior = d_own
    if SMOOTH:
        d_mean = tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0).to(tl.float32)
        slope += d_mean
        if GATED:
            share = tl.zeros((BM, KP), tl.float32)
            for start in range(0, SP, BS):
                ss = start + tl.arange(0, BS)
                joint = _joint_of_drawn(prior, z, drawn, slots, info, vocab, rows, inside, ks, ss, S, K, H, W)
                part = tl.exp(joint - _log_sum_exp(joint, 1)[:, None, :])
                part = tl.where((ss < S)[None, None, :], part, 0.0)
                at = shares + (cells * SP)[:, :, None] + ss[None, None, :]
                tl.store(
                    at, part.to(shares.dtype.element_ty), mask=both[:, :, None] & (ss < SP)[None, None, :]
                )
                share += tl.sum(part, 2)
            d_prior -= (d_mean / S)[:, None] * share
        else:
            d_prior -= d_mean[:, None]
    row = d_parts + cells * (M + 1)
    tl.store(row + M, d_own, mask=both)
    if FULL:
        for m in tl.static_range(M):
            tl.store(row + m, -d_prior, mask=both)
    else:
        ps = tl.arange(0, PP)
        sums = _path_sums(parts, paths, rows, inside, ks, ps, K, H, F, P)
        mass = _log_sum_exp(sums, 2)
        joint = prior + mass
        d_mass = slope[:, None] * tl.exp(joint - _log_sum_exp(joint, 1)[:, None])
        d_prior += d_mass
        d_paths = d_mass[:, :, None] * tl.exp(sums - mass[:, :, None])
        for m in range(M):
            crossed = tl.load(incidence + m * PP + ps).to(tl.float32)
            d = tl.sum(d_paths * crossed[None, None, :], 2)
            tl.store(row + m, tl.where(m < H, d - d_prior, d), mask=both)
    if GATED:
        d = d_prior - tl.exp(log_gate) * tl.sum(tl.where((ks < K)[None, :], d_prior, 0.0), 1)[:, None]
        tl.store(d_gate + cells, d.to(d_gate.dtype.element_ty), mask=both)
