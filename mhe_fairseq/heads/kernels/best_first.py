"""The best continuations of the hypotheses of a sentence, under a cascade: one program a sentence.

Groups of tokens are opened best first, until no closed one can hold a token that matters. How many that
takes differs from sentence to sentence, and is found on the device: the host never waits.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
# (what is jitted takes Triton's values, which have no types for mypy)

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from mhe_fairseq.heads.kernels.launch import cdiv, launch, power_of_2, precision
from mhe_fairseq.heads.kernels.scores import add_logits, dot
from mhe_fairseq.heads.kernels.tiles import search_tile

_BIG = tl.constexpr(2**30)

#: Prefixes that a program keeps its list of in registers.
MOST_PREFIXES = 16384

#: Tokens that are looked for, at most: each found is put in its place by itself.
MOST_BEST = 128

#: Hypotheses of a sentence, at most: a tile's rows.
MOST_ROWS = 64


@triton.jit
def empty_list(K: tl.constexpr, BK: tl.constexpr):
    """Room for the K best: totals, values, names, rows, and the worst total."""
    # What pads the list is never the worst of it.
    best_total = tl.where(tl.arange(0, BK) < K, float("-inf"), float("inf"))
    nothing = tl.zeros((BK,), tl.int32)
    return best_total, tl.full((BK,), float("-inf"), tl.float32), nothing, nothing, tl.min(best_total, 0)


@triton.jit
def insert(
    total, value, name, row, seen, best_total, best_value, best_name, best_row, floor,
    BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Put what exceeds the worst of the best (``floor``) in its place, largest first.

    ``total``, ``value`` and ``seen``, the number of each element of its tile, are (BM, BN), with ``name``
    (BN,) and ``row`` (BM,). Of equal ones those found first stay.
    """
    k = tl.arange(0, BK)
    largest = tl.max(tl.max(total, 1), 0)
    while largest > floor:
        at = tl.min(tl.min(tl.where(total == largest, seen, _BIG), 1), 0)
        hit = seen == at
        found = tl.sum(tl.sum(tl.where(hit, value, 0.0), 1), 0)
        found_name = tl.sum(tl.sum(tl.where(hit, name[None, :], 0), 1), 0)
        found_row = tl.sum(tl.sum(tl.where(hit, row[:, None], 0), 1), 0)
        place = k == tl.min(tl.where(best_total == floor, k, BK), 0)
        best_total = tl.where(place, largest, best_total)
        best_value = tl.where(place, found, best_value)
        best_name = tl.where(place, found_name, best_name)
        best_row = tl.where(place, found_row, best_row)
        floor = tl.min(best_total, 0)
        total = tl.where(hit, float("-inf"), total)
        largest = tl.max(tl.max(total, 1), 0)
    return best_total, best_value, best_name, best_row, floor


@triton.jit
def block_logits(
    x, w, names, rows, inside, base, n,
    D: tl.constexpr, L: tl.constexpr, TIED: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """Logits of a tile of rows for digits ``n`` of the prefix that begins at slot ``base``: (BM, BN) fp32,
    not rounded, -inf at holes; and the names of these digits, as in ``continuations``."""
    name = tl.load(names + base + n, mask=n < L, other=-1)
    real = name != -1
    if TIED:
        # A token that is not looked for is named -2 - token.
        table_row = tl.where(name < 0, -2 - name, name).to(tl.int64)
    else:
        table_row = base + n
    acc = tl.zeros((BM, BN), tl.float32)
    for d0 in range(0, D, BD):
        d = d0 + tl.arange(0, BD)
        if D % BD == 0:
            a = tl.load(x + rows[:, None] * D + d[None, :], mask=inside[:, None], other=0.0)
            b = tl.load(w + table_row[None, :] * D + d[:, None], mask=real[None, :], other=0.0)
        else:
            a = tl.load(
                x + rows[:, None] * D + d[None, :], mask=inside[:, None] & (d < D)[None, :], other=0.0
            )
            b = tl.load(
                w + table_row[None, :] * D + d[:, None], mask=real[None, :] & (d < D)[:, None], other=0.0
            )
        acc = dot(a, b.to(a.dtype), acc, PRECISION)
    return tl.where(real[None, :], acc, float("-inf")), name


@triton.jit
def insert_tokens(
    logits, log_sum, reached, score, name, row, inside, n,
    best_total, best_value, best_name, best_row, floor, BK: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """``insert`` the tokens of a block of an opened prefix, which the rows come to with ``reached``."""
    # No token is more probable than its prefix: rounded up, it would be missed.
    value = reached[:, None] + tl.minimum(logits - log_sum[:, None], 0.0)
    total = value + score[:, None]
    total = tl.where((name >= 0)[None, :] & inside[:, None] & (total == total), total, float("-inf"))
    return insert(
        total, value, name, row, row[:, None] * BN + n[None, :],
        best_total, best_value, best_name, best_row, floor, BK, BN,
    )  # fmt: skip


@triton.jit(do_not_specialize=["scores_stride", "out_stride", "tokens_stride"])
def best_first_kernel(
    prefixes, x, w, names, scores, out, tokens, scores_stride, out_stride, tokens_stride,
    P: tl.constexpr, D: tl.constexpr, L: tl.constexpr, BEAM: tl.constexpr, K: tl.constexpr,
    MARKED: tl.constexpr, TIED: tl.constexpr, PRECISION: tl.constexpr, BP: tl.constexpr, BK: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """See ``continuations``."""
    row = tl.arange(0, BM)
    inside = row < BEAM
    rows = tl.program_id(0).to(tl.int64) * BEAM + row
    score = tl.load(scores + rows * scores_stride, mask=inside, other=float("-inf"))
    k = tl.arange(0, BK)
    written = inside[:, None] & (k < K)[None, :]
    if MARKED:
        marks = tl.load(out + rows[:, None] * out_stride + k[None, :], mask=written, other=0.0)
        going = tl.max(marks, 1) == float("inf")
        written = written & going[:, None]
        score = tl.where(going, score, float("-inf"))
    p = tl.arange(0, BP)
    # Of each prefix the best that a hypothesis can come to with it.
    priority = tl.full((BP,), float("-inf"), tl.float32)
    for i in range(BEAM):
        one = tl.program_id(0).to(tl.int64) * BEAM + i
        reached = tl.load(prefixes + one * P + p, mask=p < P, other=float("-inf"))
        reached += tl.sum(tl.where(row == i, score, 0.0), 0)
        priority = tl.where(reached > priority, reached, priority)  # never for a NaN
    best_total, best_value, best_name, best_row, floor = empty_list(K, BK)
    first = tl.max(priority, 0)
    while first > floor:
        node = tl.min(tl.where(priority == first, p, BP), 0)
        priority = tl.where(p == node, float("-inf"), priority)
        base = node.to(tl.int64) * L
        reached = tl.load(prefixes + rows * P + node, mask=inside, other=float("-inf"))
        n = tl.arange(0, BN)
        if L <= BN:
            logits, name = block_logits(x, w, names, rows, inside, base, n, D, L, TIED, PRECISION, BM, BN, BD)
            top = tl.max(logits, 1)
            log_sum = top + tl.log(tl.sum(tl.exp(logits - top[:, None]), 1))
            best_total, best_value, best_name, best_row, floor = insert_tokens(
                logits, log_sum, reached, score, name, row, inside, n,
                best_total, best_value, best_name, best_row, floor, BK, BN,
            )  # fmt: skip
        else:
            # What does not fit in one tile is read twice: for its sum, and for its tokens.
            top = tl.full((BM,), float("-inf"), tl.float32)
            sums = tl.zeros((BM,), tl.float32)
            for n0 in range(0, L, BN):
                logits, name = block_logits(
                    x, w, names, rows, inside, base, n0 + n, D, L, TIED, PRECISION, BM, BN, BD
                )
                top, sums = add_logits(top, sums, logits)
            log_sum = top + tl.log(sums)
            for n0 in range(0, L, BN):
                logits, name = block_logits(
                    x, w, names, rows, inside, base, n0 + n, D, L, TIED, PRECISION, BM, BN, BD
                )
                best_total, best_value, best_name, best_row, floor = insert_tokens(
                    logits, log_sum, reached, score, name, row, inside, n,
                    best_total, best_value, best_name, best_row, floor, BK, BN,
                )  # fmt: skip
        first = tl.max(priority, 0)
    is_of = (best_row[None, :] == row[:, None]) & (best_total > float("-inf"))[None, :]
    value = tl.where(is_of, best_value[None, :], float("-inf"))
    tl.store(out + rows[:, None] * out_stride + k[None, :], value, mask=written)
    name = tl.where(is_of, best_name[None, :], 0).to(tl.int64)
    tl.store(tokens + rows[:, None] * tokens_stride + k[None, :], name, mask=written)


def continuations(
    prefixes: Tensor, x: Tensor, table: Tensor, names: Tensor, length: int, scores: Tensor, beam: int,
    out: Tensor, tokens: Tensor, marked: bool,
) -> None:  # fmt: skip
    """The k best continuations of all hypotheses of each sentence, of the tokens that are looked for.

    Args:
        prefixes: (N, P) fp32, log-probabilities of all digits but the last.
        x: (N, D), what the last digit reads.
        table: (P, L, D), or (V, D) read by token where the names are rows of it.
        names: (P * L,) int32: a slot's token, -1 where there is none, -2 - token where it is not looked for.
        length: L.
        scores: (N,) fp32 of the hypotheses, any stride; -inf: not to be continued.
        beam: hypotheses of a sentence, at most ``MOST_ROWS``; N is a multiple of it.
        out: (N, k) fp32, k at most ``MOST_BEST``, rows may be apart: written to. Log-probabilities, in no
            order, -inf where a hypothesis has fewer among the best.
        tokens: (N, k) long, likewise.
        marked: only hypotheses that have +inf in ``out`` are continued, and their rows written to.
    """
    (n, width), k = x.shape, out.size(1)
    tile = search_tile("best_first", x.dtype, length, beam)
    launch(
        best_first_kernel,
        (n // beam,),
        (
            prefixes, x, table, names, scores, out, tokens,
            scores.stride(0), out.stride(0), tokens.stride(0),
        ),
        tile,
        P=prefixes.size(1),
        D=width,
        L=length,
        BEAM=beam,
        K=k,
        MARKED=marked,
        TIED=table.dim() == 2,
        PRECISION=precision(x.dtype),
        BP=power_of_2(prefixes.size(1)),
        BK=power_of_2(k),
    )  # fmt: skip


@triton.jit(do_not_specialize=["N", "C", "out_stride"])
def given_kernel(
    prefixes, x, w, names, slots, tokens, out, N, C, out_stride,
    P: tl.constexpr, D: tl.constexpr, L: tl.constexpr, SHARED: tl.constexpr, TIED: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BD: tl.constexpr,
):  # fmt: skip
    """See ``given``."""
    c = tl.program_id(1)
    row = tl.arange(0, BM)
    if SHARED:
        rows = tl.program_id(0).to(tl.int64) * BM + row
        inside = rows < N
        token = tl.load(tokens + c)
    else:
        rows = tl.program_id(0).to(tl.int64) + row
        inside = row < 1
        token = tl.load(tokens + tl.program_id(0).to(tl.int64) * C + c)
    slot = tl.load(slots + token)
    prefix = slot // L
    n = tl.arange(0, BN)
    top = tl.full((BM,), float("-inf"), tl.float32)
    sums = tl.zeros((BM,), tl.float32)
    picked = tl.zeros((BM,), tl.float32)
    for n0 in range(0, L, BN):
        logits, _ = block_logits(
            x, w, names, rows, inside, prefix * L, n0 + n, D, L, TIED, PRECISION, BM, BN, BD
        )
        picked += tl.sum(tl.where((n0 + n == slot % L)[None, :], logits, 0.0), 1)
        top, sums = add_logits(top, sums, logits)
    reached = tl.load(prefixes + rows * P + prefix, mask=inside, other=0.0)
    value = reached + tl.minimum(picked - (top + tl.log(sums)), 0.0)
    tl.store(out + rows * out_stride + c, value, mask=inside)


def given(
    prefixes: Tensor, x: Tensor, table: Tensor, names: Tensor, slots: Tensor, length: int, tokens: Tensor,
    out: Tensor,
) -> None:  # fmt: skip
    """Log-probabilities of tokens, logits not rounded. The arguments are those of ``continuations``, and:

    Args:
        slots: (V,) long, the slot of every token.
        tokens: (C,) long, asked of all rows, or (N, C).
        out: (N, C) fp32, rows may be apart: written to.
    """
    n, count = len(x), tokens.size(-1)
    tile = search_tile("given", x.dtype, length)
    shared = tokens.dim() == 1
    launch(
        given_kernel,
        (cdiv(n, tile.constants["BM"]) if shared else n, count),
        (prefixes, x, table, names, slots, tokens.contiguous(), out, n, count, out.stride(0)),
        tile,
        P=prefixes.size(1),
        D=x.size(1),
        L=length,
        SHARED=shared,
        TIED=table.dim() == 2,
        PRECISION=precision(x.dtype),
    )
