"""What output layers move through a GPU's memory, pass by pass, and hold at their peak.

A pass is an operator or a kernel. It is taken to read what it is given once and to write what it makes once:
what is read again in a pass comes from the caches, nothing stays there from one pass to the next. Numbers of
which a token has a few (targets, losses, sums) are left out. The softmax is fairseq's own:
``label_smoothed_cross_entropy`` over a ``log_softmax`` in fp32, beam search over V log-probabilities.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from mhe_fairseq.heads.cascade.head import SMOOTHING_PARTS
from mhe_fairseq.heads.product.kernels import SMOOTHING_TOKENS
from mhe_fairseq.heads.sampling.head import PARTS

_FP32 = 4


class Pass(NamedTuple):
    """One operator or kernel: bytes read and written, multiply-adds."""

    read: float
    written: float
    macs: float = 0.0


@dataclass(frozen=True)
class Sizes:
    """What a layer's passes depend on.

    Attributes:
        vocab: V.
        dim: d.
        lengths: of the digits; () for the softmax.
        mixtures: K.
        groups: of tokens, those that are not empty.
        touched: of them, by the gold tokens of a batch.
        drawn: groups that a part of the batch meets beside the gold ones.
        prototypes: m, rows of each of a cascade's first digits.
        tokens: N, in a training batch.
        hypotheses: in a step of beam search, all sentences'.
        best: tokens wanted of each hypothesis.
    """

    vocab: int
    dim: int
    lengths: tuple[int, ...]
    tokens: int
    hypotheses: int
    best: int
    mixtures: int = 1
    groups: int = 0
    touched: float = 0.0
    drawn: int = 0
    prototypes: int = 1

    @property
    def first_rows(self) -> int:
        """Rows of a cascade's first digit."""
        return self.prototypes * self.lengths[0]

    @property
    def columns(self) -> int:
        """Logits of a product: K sum(L)."""
        return self.mixtures * sum(self.lengths)


def bytes_moved(passes: Iterable[Pass]) -> float:
    """Read and written."""
    return sum(each.read + each.written for each in passes)


def training_passes(kind: str, sizes: Sizes, element: int) -> list[Pass]:
    """Of forward and backward with label smoothing.

    Args:
        kind: "softmax", "product", "mixture", "cascade", "sampling" (groups that parts of the batch share) or
            "predicted" (each token's own).
        sizes: see there.
        element: bytes of a weight, a feature and a stored logit: 2 or 4.
    """
    if kind == "softmax":
        return _softmax_training(sizes, element)
    if kind == "cascade":
        return _cascade_training(sizes, element)
    if kind == "sampling":
        return _sampling_training(sizes, element)
    if kind == "predicted":
        return _predicted_training(sizes, element)
    return _product_training(sizes, element)


def search_passes(kind: str, sizes: Sizes, element: int) -> list[Pass]:
    """Of the output layer in a step of beam search; arguments as for ``training_passes``.

    Product, mixture and cascade are searched without V-wide scores. Their scores are written, read, written
    in fp32 and read again; a group's rows are read once however many hypotheses open it, and as many groups
    are opened as tokens are wanted.
    """
    n, d, e = sizes.hypotheses, sizes.dim, element
    if kind in ("softmax", "sampling", "predicted"):
        v = float(n * sizes.vocab)
        return [
            _product(n, sizes.vocab, d, e),
            Pass(v * e, v * e),  # temperature
            *_copied(v, e, _FP32),
            Pass(v * _FP32, v * _FP32),  # log_softmax
            Pass(v * _FP32, v),  # which are no numbers
            Pass(v * (_FP32 + 1), v * _FP32),  # these masked
            Pass(v * _FP32, v * _FP32),  # scores of the hypotheses added
            Pass(v * _FP32, 0),  # topk
        ]
    if kind == "cascade":
        first, last = sizes.lengths[0], sizes.lengths[-1]
        opened = min(sizes.best, sizes.groups)
        scored = opened * last
        passes = [_product(n, sizes.first_rows, d, e)]
        if sizes.prototypes > 1:
            merged = (sizes.prototypes - 1) * n * first * _FP32  # pairs are added up until one is left
            passes.append(Pass(2 * merged, merged))
        for prefixes, length in _levels(sizes.lengths)[:-1]:
            scored += length
            passes.append(_grouped(n, length, d, e, rows=min(prefixes, n) * length))
        passes.append(_grouped(n, opened * last, d, e, rows=min(sizes.groups, n * opened) * last))
        return [*passes, *_chosen(n * (first + scored), e)]
    # The best pairs are among those with (i + 1)(j + 1) <= k; a mixture opens rows of a table.
    if kind == "product":
        made = (len(sizes.lengths) - 1) * sum(sizes.best // (i + 1) for i in range(sizes.best))
        return [
            _product(n, sizes.columns, d, e),
            *_chosen(n * sizes.columns, e),
            Pass(n * made * _FP32, n * made * _FP32),
        ]
    columns = sizes.columns + sizes.mixtures
    made = min(sizes.lengths[0], max(8, sizes.best)) * math.prod(sizes.lengths[1:])
    return [
        _product(n, columns, d, e),
        *_chosen(n * columns, e),
        Pass(n * columns * _FP32, n * made * _FP32, sizes.mixtures * n * made),
        Pass(n * made * _FP32, 0),
    ]


def peak_bytes(kind: str, sizes: Sizes, element: int) -> float:
    """Held at the peak of a training step beside weights, features and the weights' gradients: logits, what
    the backward pass keeps, the features' gradient. Arguments as for ``training_passes``."""
    n, d, e = sizes.tokens, sizes.dim, element
    features = n * d * e
    if kind == "softmax":
        # Log-probabilities, the gradient of the targets', the sum of both gradients; logits are freed.
        return 3.0 * _FP32 * n * sizes.vocab
    if kind == "cascade":
        stored = sizes.first_rows + sum(
            (1 + sizes.drawn) * _padded(length) for _, length in _levels(sizes.lengths)
        )
        return float(2 * n * stored * e + features)
    if kind == "predicted":
        # Logits and their gradients, the pairs' features and theirs, slots and weights; predicted shares.
        pair = 2 * (_padded(_group_length(sizes)) + d) * e + 4 * _FP32
        return float(n * (1 + sizes.drawn) * pair + n * sizes.groups * _FP32)
    if kind == "sampling":
        stored = (1 + sizes.drawn) * _padded(_group_length(sizes))
        # The features in fp32, for the mean row's gradient.
        return float(2 * n * stored * e + features + (n * d * _FP32 if e < _FP32 else 0))
    parts = n * sizes.mixtures * 3 * len(sizes.lengths) * _FP32
    gated = 2 * n * sizes.mixtures * (e + SMOOTHING_TOKENS * e // 2) if sizes.mixtures > 1 else 0
    return float(2 * n * sizes.columns * e + features + parts + gated)


# ---- the layers' training


def _softmax_training(sizes: Sizes, e: int) -> list[Pass]:
    n, v, d = sizes.tokens, sizes.vocab, sizes.dim
    fp32 = float(n * v * _FP32)
    return [
        _product(n, v, d, e),
        *_copied(n * v, e, _FP32),
        Pass(fp32, fp32),  # log_softmax
        Pass(fp32, 0),  # sum, for smoothing
        Pass(0, fp32),  # gradient of the targets': zeros
        Pass(fp32, fp32),  # and of the sum
        Pass(2 * fp32, fp32),  # log_softmax
        *_copied(n * v, _FP32, e),
        *_product_backward(n, v, d, e),
    ]


def _product_training(sizes: Sizes, e: int) -> list[Pass]:
    n, d, k = sizes.tokens, sizes.dim, sizes.mixtures
    logits = float(n * sizes.columns * e)
    gates = k if k > 1 else 0
    # Mixtures read the drawn tokens' digits, most logits of some digit.
    again = logits if k > 1 else 0.0
    shares = float(n * k * SMOOTHING_TOKENS * e) if k > 1 else 0.0
    passes = [
        _product(n, sizes.columns, d, e),
        Pass(logits, 0),  # sums of digits
        Pass(again, 0),  # the loss
        Pass(again, shares),
        Pass(logits + shares, logits),  # gradients of logits
        *_product_backward(n, sizes.columns, d, e),
        Pass(logits, 0),  # of the bias
    ]
    if gates:
        # The features' gradient is added to.
        features = float(n * d * e)
        passes += [_product(n, gates, d, e), *_product_backward(n, gates, d, e), Pass(features, 0)]
    return passes


def _cascade_training(sizes: Sizes, e: int) -> list[Pass]:
    n, d, s = sizes.tokens, sizes.dim, sizes.drawn
    first = sizes.first_rows
    groups = float(n * first * e)
    met = min(float(sizes.groups), sizes.touched + s * SMOOTHING_PARTS)
    passes = [
        _product(n, first, d, e),
        Pass(groups, 0),  # the first digit's soft-max
        *_product_backward(n, first, d, e),
        Pass(groups, 0),  # gradient of the bias
        Pass(groups, groups),  # gradient of the first digit's logits
    ]
    for prefixes, length in _levels(sizes.lengths):
        own, shared = min(float(prefixes), sizes.touched), min(float(prefixes), s * SMOOTHING_PARTS)
        passes += _level_training(
            n, length, d, e, s, min(float(prefixes), met), (own, shared), prefixes * length, add=True
        )
    return passes


def _sampling_training(sizes: Sizes, e: int) -> list[Pass]:
    n, d, s = sizes.tokens, sizes.dim, sizes.drawn
    length = _group_length(sizes)
    met = min(float(sizes.groups), sizes.touched + s * PARTS)
    shared = min(float(sizes.groups), s * PARTS)
    wide = n * d * (e + _FP32) if e < _FP32 else 0.0
    return [
        Pass(float(sizes.vocab * d * e), 0),  # mean row
        Pass(wide + n * d * _FP32, 0),
        *_level_training(n, length, d, e, s, met, (sizes.touched, shared), sizes.vocab, add=False),
        Pass(wide + n * d * _FP32, 0),  # and its gradient
    ]


def _predicted_training(sizes: Sizes, e: int) -> list[Pass]:
    n, d, g = sizes.tokens, sizes.dim, sizes.groups
    pairs, length, fp64 = n * (1 + sizes.drawn), _group_length(sizes), 2 * _FP32
    narrow = float(n * g * _FP32)
    copied = Pass(float(n * d * e), float(pairs * d * e))  # the features of each pair
    stored, row = float(pairs * _padded(length) * e), float(length * d * e)
    macs = float(pairs * length * d)
    return [
        *_copied(n * d, e, _FP32),
        _product(n, g, d, _FP32),  # what groups are predicted to hold
        Pass(2 * narrow, 2 * narrow),  # its bias, log_softmax
        Pass(narrow, pairs * (2.0 * fp64 + _FP32)),  # drawn: a pair's group, slot and weight
        Pass(10.0 * pairs * fp64, 10.0 * pairs * fp64),  # their order, sums
        copied,
        Pass(copied.written + sizes.groups * row, stored, macs),
        Pass(float(sizes.vocab * d * e), 0),  # mean row
        *_copied(n * d, e, _FP32),
        Pass(n * d * _FP32, 0),
        Pass(stored, stored),  # gradients of logits
        Pass(stored + sizes.groups * row, copied.written, macs),  # of the pairs' features
        Pass(copied.written, float(n * d * _FP32)),
        Pass(2.0 * n * d * _FP32, 2.0 * n * d * _FP32),  # the mean row's share
        *_copied(n * d, _FP32, e),
        *_copied(n * d, e, _FP32),
        Pass(n * d * _FP32, 0),
        copied,
        Pass(copied.written + stored, float(sizes.vocab * d * e), macs),  # of the table
        Pass(0, narrow),  # gradient of what is predicted
        Pass(2 * narrow, narrow),
        Pass(narrow, 0),
        Pass(narrow + n * d * _FP32, 0, float(n * g * d)),
    ]


def _level_training(
    n: int, length: int, d: int, e: int, s: int, met: float, read: tuple[float, float], rows: int, add: bool
) -> list[Pass]:
    """Of tokens against their own group and ``s`` others: heads/kernels/level.py.

    Args:
        met: groups that are met at all.
        read: of them, gold ones and drawn ones.
        rows: of the table, whose gradient is written whole.
        add: the features' gradient is added to what is there.
    """
    block = float(n * _padded(length) * e)
    stored, features, row = (1 + s) * block, float(n * d * e), float(length * d * e)
    macs = float(n * length * d)
    passes = [
        Pass(features + met * row, stored, (1 + s) * macs),
        Pass(stored, stored),  # gradients of logits
        Pass(block + read[0] * row + features * add, features, macs),  # of the features, by their own groups
        Pass(features + stored, float(rows * d * e), (1 + s) * macs),  # of the table
    ]
    if s:
        passes.append(Pass(s * block + read[1] * row + features, features, s * macs))
    return passes


# ---- parts of them


def _product(n: int, columns: int, d: int, e: int) -> Pass:
    """(n, d) times (d, columns)."""
    return Pass(float((n + columns) * d * e), float(n * columns * e), float(n * columns * d))


def _product_backward(n: int, columns: int, d: int, e: int) -> list[Pass]:
    """Gradients of the features and of the weights."""
    grad, macs = float(n * columns * e), float(n * columns * d)
    return [
        Pass(grad + columns * d * e, float(n * d * e), macs),
        Pass(grad + n * d * e, float(columns * d * e), macs),
    ]


def _grouped(n: int, columns: int, d: int, e: int, rows: int) -> Pass:
    """(n, d) times ``columns`` rows for each, ``rows`` in all."""
    return Pass(float((n + rows) * d * e), float(n * columns * e), float(n * columns * d))


def _copied(numbers: float, source: int, result: int) -> list[Pass]:
    """Numbers made of another type. (torch spares the softmax this in fp16, on CUDA, not in bf16.)"""
    return [] if source == result else [Pass(float(numbers * source), float(numbers * result))]


def _chosen(scores: int, e: int) -> list[Pass]:
    """Soft-max of scores in fp32, and the best of them."""
    return [Pass(float(scores * e), float(scores * _FP32)), Pass(float(scores * _FP32), 0)]


def _levels(lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    """Prefixes and length of each digit after the first."""
    return [(math.prod(lengths[:h]), lengths[h]) for h in range(1, len(lengths))]


def _group_length(sizes: Sizes) -> int:
    return math.ceil(sizes.vocab / sizes.groups)


def _padded(length: int) -> int:
    """As heads/kernels/level.py stores logits."""
    return math.ceil(length / 16) * 16
