"""The best tokens of a product or a mixture of products: one program a row.

Values of the first digit are opened in the order of an upper bound, until no closed one can hold a token that
matters; how many that takes is found on the device.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from mhe_fairseq.heads.kernels.best_first import empty_list, insert
from mhe_fairseq.heads.kernels.launch import launch, power_of_2
from mhe_fairseq.heads.kernels.tiles import row_tile

#: Room for rounding in a bound, as a part of it.
_SLACK = tl.constexpr(1e-5)


@triton.jit
def add_exp(top, total, value):
    """A running maximum and sum of exponentials over it, with another value; all of one shape."""
    higher = tl.maximum(top, value)
    # What has no finite value yet has nothing to be compared with.
    safe = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, total * tl.exp(top - safe) + tl.exp(value - safe)


@triton.jit
def log_sum(top, total):
    """Of a running maximum and sum; -inf of nothing."""
    known = top + tl.log(tl.where(total > 0.0, total, 1.0))
    # What is no number stays so.
    return tl.where(total > 0.0, known, float("-inf")) + total * 0.0


@triton.jit
def log_sum_exp(values):
    """Of a vector."""
    top = tl.max(values, 0)
    safe = tl.where(top == float("-inf"), 0.0, top)
    return log_sum(safe, tl.sum(tl.exp(values - safe), 0))


@triton.jit(do_not_specialize=["scores_stride", "tokens_stride", "given_stride"])
def best_tokens_kernel(
    first, gate, rest, names, pattern_of, patterns, slots, asked, scores, tokens, given,
    first_stride, rest_stride, scores_stride, tokens_stride, given_stride,
    A: tl.constexpr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr, W: tl.constexpr, S: tl.constexpr,
    BA: tl.constexpr, BC: tl.constexpr, BK: tl.constexpr, BJ: tl.constexpr,
):  # fmt: skip
    """See ``best_tokens``; ``S`` is the number of patterns, 0 without holes."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.arange(0, BA)
    j = tl.arange(0, BJ)
    component = tl.arange(0, BC)
    above_at = first + n * first_stride
    below_at = rest + n * rest_stride
    priors = tl.zeros((BC,), tl.float32)
    top = tl.full((BA,), float("-inf"), tl.float32)
    total = tl.zeros((BA,), tl.float32)
    mass_top = tl.full((BA,), float("-inf"), tl.float32)
    mass_total = tl.zeros((BA,), tl.float32)
    for c in range(C):
        above = tl.load(above_at + c * A + i, mask=i < A, other=float("-inf"))
        largest = tl.full((BJ,), float("-inf"), tl.float32)
        sums = tl.zeros((BJ,), tl.float32)
        for j0 in range(0, R, BJ):
            below = tl.load(below_at + c * R + j0 + j, mask=j0 + j < R, other=float("-inf"))
            largest, sums = add_exp(largest, sums, below)
        prior = tl.load(gate + n * C + c) - log_sum_exp(above) - log_sum_exp(log_sum(largest, sums))
        priors = tl.where(component == c, prior, priors)
        top, total = add_exp(top, total, above + (prior + tl.max(largest, 0)))
        if S > 0:
            pattern = tl.load(pattern_of + i, mask=i < A, other=-1)
            reached = tl.full((BA,), float("-inf"), tl.float32)
            for s in range(S):
                largest = tl.full((BJ,), float("-inf"), tl.float32)
                sums = tl.zeros((BJ,), tl.float32)
                for j0 in range(0, R, BJ):
                    real = tl.load(patterns + s * R + j0 + j, mask=j0 + j < R, other=0) > 0
                    below = tl.load(below_at + c * R + j0 + j, mask=real, other=float("-inf"))
                    largest, sums = add_exp(largest, sums, below)
                reached = tl.where(pattern == s, log_sum_exp(log_sum(largest, sums)), reached)
            mass_top, mass_total = add_exp(mass_top, mass_total, above + (prior + reached))
    mass = 0.0
    if S > 0:
        mass = log_sum_exp(log_sum(mass_top, mass_total))
    for w in range(W):
        slot = tl.load(slots + tl.load(asked + w))
        value_w = float("-inf")
        sum_w = 0.0
        for c in range(C):
            joint = tl.load(above_at + c * A + slot // R) + tl.load(below_at + c * R + slot % R)
            value_w, sum_w = add_exp(value_w, sum_w, joint + tl.sum(tl.where(component == c, priors, 0.0), 0))
        tl.store(given + n * given_stride + w, log_sum(value_w, sum_w) - mass)
    bound = log_sum(top, total)
    bound += _SLACK * tl.clamp(tl.abs(bound), 1.0, 1e30)
    bound = tl.where((i < A) & (bound == bound), bound, float("-inf"))
    k = tl.arange(0, BK)
    best_total, best_value, best_name, best_row, floor = empty_list(K, BK)
    highest = tl.max(bound, 0)
    while highest > floor:
        node = tl.min(tl.where(bound == highest, i, BA), 0)
        bound = tl.where(i == node, float("-inf"), bound)
        for j0 in range(0, R, BJ):
            top_j = tl.full((BJ,), float("-inf"), tl.float32)
            total_j = tl.zeros((BJ,), tl.float32)
            for c in range(C):
                prior = tl.sum(tl.where(component == c, priors, 0.0), 0)
                reached_c = tl.load(above_at + c * A + node) + prior
                below = tl.load(below_at + c * R + j0 + j, mask=j0 + j < R, other=float("-inf"))
                top_j, total_j = add_exp(top_j, total_j, reached_c + below)
            value = top_j
            if C > 1:
                value = log_sum(top_j, total_j)
            name = tl.load(names + node * R + j0 + j, mask=j0 + j < R, other=-1)
            value = tl.where((name >= 0) & (value == value), value, float("-inf"))[None, :]
            best_total, best_value, best_name, best_row, floor = insert(
                value, value, name, tl.arange(0, 1), j[None, :],
                best_total, best_value, best_name, best_row, floor, BK, BJ,
            )  # fmt: skip
        highest = tl.max(bound, 0)
    tl.store(scores + n * scores_stride + k, best_value - mass, mask=k < K)
    tl.store(tokens + n * tokens_stride + k, best_name.to(tl.int64), mask=k < K)


class SlotTables(NamedTuple):
    """Which slots are tokens, for a first digit of A values and R continuations of each.

    Attributes:
        pattern_of: (A,) int32: which pattern of continuations are tokens; -1: none is. None without holes.
        patterns: (S, R) int8, or None.
        slots: (V,) long, the slot of every token.
    """

    pattern_of: Tensor | None
    patterns: Tensor | None
    slots: Tensor


class Found(NamedTuple):
    """Where N rows' answers are written; rows may be apart.

    Attributes:
        scores: (N, k) fp32 log-probabilities of the best, in no order; -inf where there are not as many. k is
            at most ``best_first.MOST_BEST``.
        tokens: (N, k) long.
        given: (N, W) fp32, of the tokens asked for.
    """

    scores: Tensor
    tokens: Tensor
    given: Tensor


def best_tokens(
    first: Tensor, gate: Tensor, rest: Tensor, names: Tensor, tables: SlotTables, asked: Tensor, found: Found
) -> None:
    """The k largest of log sum_c pi_c softmax(first_c)_i softmax(rest_c)_j / Z over the tokens (i, j).

    Args:
        first: (N, C, A) fp32 logits of the first digit; rows may be apart, within a row there is no gap.
        gate: (N, C) fp32, log pi_c.
        rest: (N, C, R) fp32 logits of all other digits together, laid out likewise.
        names: (A * R,) int32: a slot's token, -1 where there is none, -2 - token where it is not looked for.
        tables: of the codebook.
        asked: (W,) long: tokens to be scored, too.
        found: written to.
    """
    n, components, width = first.shape
    k = found.scores.size(1)
    launch(
        best_tokens_kernel,
        (n,),
        (
            first, gate, rest, names, tables.pattern_of, tables.patterns, tables.slots, asked, *found,
            first.stride(0), rest.stride(0), *(each.stride(0) for each in found),
        ),
        row_tile(rest.size(-1)),
        A=width,
        R=rest.size(-1),
        C=components,
        K=k,
        W=len(asked),
        S=0 if tables.patterns is None else len(tables.patterns),
        BA=power_of_2(width),
        BC=power_of_2(components),
        BK=power_of_2(k),
    )  # fmt: skip
