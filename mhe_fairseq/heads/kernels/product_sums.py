"""Kernels over the logits of K components of H digits (``ProductHead``): sums over digits, and gradients.

Logits z are (N, W), W = K sum(L): all components' logits of the first digit, then of the second, ... Beside
them goes a row of numbers for every token and component, ``parts`` (N, K, F): the log-sum-exps over M sets of
digits (the first H: all values of each digit), then the own digits' logits, H of them, then for K = 1 the
means of the logits over the vocabulary, H of them. Tables, on the device (see ``product_tables``):

    info (M + 1, 5) int64: level, L, offset of the level in sum(L), divisor of slots; of row h <= H also the
        first of the other sets of level h
    members (M, LP) int8, paths (P, H) int32, incidence (M, PP) int8, mean (sum(L),) fp32, slots (V,) int64

All arithmetic is fp32. N changes with every batch and is not specialised; sizes of the head are constants.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.scores import dot


@triton.jit
def digits_of(tokens, inside, slots, vocab, divisor, length):
    """One digit of tokens; -1 for what is no token, so that its loss is nan and not another token's."""
    inside = inside & (tokens >= 0) & (tokens < vocab)
    digit = tl.load(slots + tokens, mask=inside, other=0) // divisor % length
    return tl.where(inside, digit, -1).to(tl.int32)


@triton.jit(do_not_specialize=["n", "total_rows", "vocab"], do_not_specialize_on_alignment=["target"])
def digit_sums(
    z, target, slots, info, members, mean, parts, hits, n, total_rows, vocab,
    K: tl.constexpr, H: tl.constexpr, M: tl.constexpr, F: tl.constexpr, W: tl.constexpr, LP: tl.constexpr,
    MEAN: tl.constexpr, HITS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``parts``, and whether a digit's best value is the own one: ``hits`` (H, total_rows), for K = 1. One
    component's set a program."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < n
    k = tl.program_id(1) // M
    m = tl.program_id(1) % M
    level = tl.load(info + m * 5)
    length = tl.load(info + m * 5 + 1).to(tl.int32)
    offset = tl.load(info + m * 5 + 2)
    begin = z + rows * W + (offset * K + k * length)
    top = tl.full((BM,), float("-inf"), tl.float32)
    total = tl.zeros((BM,), tl.float32)
    weighted = tl.zeros((BM,), tl.float32)
    best = tl.zeros((BM,), tl.int32)
    for start in range(0, length, BN):
        columns = start + tl.arange(0, BN)
        real = columns < length
        x = tl.load(begin[:, None] + columns[None, :], mask=inside[:, None] & real[None, :], other=0.0)
        x = x.to(tl.float32)
        if MEAN:
            weight = tl.load(mean + offset + columns, mask=real, other=0.0)
            weighted += tl.sum(x * weight[None, :], 1)
        member = tl.load(members + m * LP + columns, mask=real, other=0) != 0
        x = tl.where(member[None, :], x, float("-inf"))
        highest = tl.max(x, 1)
        if HITS:
            place = tl.min(tl.where(x == highest[:, None], columns[None, :], 2147483647), 1)
            best = tl.where(highest > top, place, best)
        highest = tl.maximum(top, highest)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        total = total * tl.exp(top - base) + tl.sum(tl.exp(x - base[:, None]), 1)
        top = highest
    row = parts + (rows * K + k) * F
    tl.store(row + m, tl.where(top == float("-inf"), 0.0, top) + tl.log(total), mask=inside)
    if m < H:
        tokens = tl.load(target + rows, mask=inside, other=0)
        digit = digits_of(tokens, inside, slots, vocab, tl.load(info + m * 5 + 3), length)
        own = tl.load(begin + digit, mask=digit >= 0, other=float("nan")).to(tl.float32)
        tl.store(row + M + level, own, mask=inside)
        if MEAN:
            tl.store(row + M + H + level, weighted, mask=inside)
        if HITS:
            tl.store(hits + level * total_rows + rows, (best == digit).to(tl.float32), mask=inside)


@triton.jit(
    do_not_specialize=["n", "smooth_stride", "vocab"], do_not_specialize_on_alignment=["target", "d_smooth"]
)
def digit_gradients(
    z, target, drawn, slots, info, members, mean, parts, d_parts, shares, d_smooth, d_z,
    n, smooth_stride, vocab,
    K: tl.constexpr, H: tl.constexpr, M: tl.constexpr, F: tl.constexpr, W: tl.constexpr, LP: tl.constexpr,
    S: tl.constexpr, SP: tl.constexpr, GATED: tl.constexpr, SMOOTH: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """The logits' gradient, (N, W) of their type: each number is written once."""
    rows = (tl.program_id(0) * BM + tl.arange(0, BM)).to(tl.int64)
    inside = rows < n
    k = tl.program_id(1) // H
    h = tl.program_id(1) % H
    length = tl.load(info + h * 5 + 1).to(tl.int32)
    if tl.program_id(2) * BN < length:
        columns = tl.program_id(2) * BN + tl.arange(0, BN)
        real = columns < length
        both = inside[:, None] & real[None, :]
        offset = tl.load(info + h * 5 + 2)
        divisor = tl.load(info + h * 5 + 3)
        place = (rows * W + (offset * K + k * length))[:, None] + columns[None, :]
        x = tl.load(z + place, mask=both, other=0.0).to(tl.float32)
        row = parts + (rows * K + k) * F
        d_row = d_parts + (rows * K + k) * (M + 1)
        mass = tl.load(row + h, mask=inside, other=0.0)
        d = tl.load(d_row + h, mask=inside, other=0.0)[:, None] * tl.exp(x - mass[:, None])
        for m in range(tl.load(info + h * 5 + 4).to(tl.int32), tl.load(info + h * 5 + 9).to(tl.int32)):
            member = tl.load(members + m * LP + columns, mask=real, other=0) != 0
            mass = tl.load(row + m, mask=inside, other=0.0)
            share = tl.exp(tl.where(member[None, :], x - mass[:, None], float("-inf")))
            d += tl.load(d_row + m, mask=inside, other=0.0)[:, None] * share
        tokens = tl.load(target + rows, mask=inside, other=0)
        digit = digits_of(tokens, inside, slots, vocab, divisor, length)
        d_own = tl.load(d_row + M, mask=inside, other=0.0)
        d += tl.where(columns[None, :] == digit[:, None], d_own[:, None], 0.0)
        if SMOOTH:
            d_mean = tl.load(d_smooth + rows * smooth_stride, mask=inside, other=0.0).to(tl.float32)
            if GATED:
                ss = tl.arange(0, SP)
                at = shares + ((rows * K + k) * SP)[:, None] + ss[None, :]
                share = tl.load(at, mask=inside[:, None], other=0.0)
                digit = digits_of(
                    tl.load(drawn + ss, mask=ss < S, other=0), ss < S, slots, vocab, divisor, length
                )
                # By way of fp32: the interpreter makes no bf16 numbers of truth values.
                here = tl.where(digit[:, None] == columns[None, :], 1.0, 0.0).to(share.dtype)
                nothing = tl.zeros((BM, BN), tl.float32)
                d -= (d_mean / S)[:, None] * dot(share, here, nothing, PRECISION)
            else:
                d -= d_mean[:, None] * tl.load(mean + offset + columns, mask=real, other=0.0)[None, :]
        tl.store(d_z + place, d.to(d_z.dtype.element_ty), mask=both)
