"""Which token gets which slot: by frequency, at random, or by clusters of tokens used alike.

Label order matters for a model that underfits, and language models do (paper sec. 5: clustered labels
beat random ones). Clusters come from text: co-occurrence with the tokens to the left and right -> positive
pointwise mutual information -> truncated SVD -> balanced bisection; or from an embedding matrix.

All functions spread the holes evenly: groups of one level differ by at most one token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mhe_fairseq.coding.codebook import ravel
from mhe_fairseq.coding.plan import parse_lengths
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Ints = np.ndarray[Any, np.dtype[np.int64]]
Floats = np.ndarray[Any, np.dtype[np.float32]]

#: Told what is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

#: Tokens taken from the text at a time.
CHUNK = 4_000_000


def _no_progress(stage: str, done: int, total: int) -> None:
    pass


def frequency_slots(vocab_size: int, lengths: Sequence[int]) -> Tensor:
    """Dictionary order, which fairseq makes the order of frequency. Shape: (V,) long.

    Raises:
        MHEError: too few slots.
    """
    return order_slots(np.arange(vocab_size), lengths)


def random_slots(vocab_size: int, lengths: Sequence[int], seed: int = 1) -> Tensor:
    """A random order. Shape: (V,) long.

    Raises:
        MHEError: too few slots.
    """
    order = torch.randperm(vocab_size, generator=torch.Generator().manual_seed(seed))
    return order_slots(order.numpy(), lengths)


def cluster_slots(
    vectors: Floats, lengths: Sequence[int], counts: Ints | None = None, progress: Progress = _no_progress
) -> Tensor:
    """Tokens with similar vectors share their first digits; the last digit is the rank by frequency.

    L_1 clusters by balanced bisection; with three digits each cluster is bisected into L_2, and so on.
    Tokens of which nothing is known (the other language's in a joined dictionary, padding) are dealt out
    evenly: together they would use up first digits that then tell nothing.

    Args:
        vectors: (V, dim), a vector for each token; only directions count. Zeros: nothing is known.
        lengths: at least two.
        counts: (V,) how often each token occurs; None: tokens are in order of frequency.
        progress: told about stage "bisection".

    Returns:
        (V,) long slots. Equal input gives equal output.

    Raises:
        MHEError: one length, too few slots, ``counts`` of another size, vectors with NaN or infinity.
    """
    vocab_size = len(vectors)
    lengths = parse_lengths(lengths, vocab_size)
    if len(lengths) < 2:
        raise MHEError(
            "clusters become first digits, so they need at least two lengths such as 128,256; "
            f"got {lengths[0]}"
        )
    if counts is not None and len(counts) != vocab_size:
        raise MHEError(f"counts for {len(counts)} tokens were given with vectors for {vocab_size}")
    if not np.isfinite(vectors).all():
        bad = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise MHEError(f"the vector of token {bad} has NaN or infinity; vectors must be finite numbers")
    if counts is None:
        counts = np.arange(vocab_size, 0, -1)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(norms, 1e-12)).astype(np.float32)
    known = norms[:, 0] > 0
    total = int(np.prod(lengths[:-1]))
    done = 0
    parts: list[Ints] = []

    def divide(members: Ints, level: int) -> None:
        nonlocal done
        if level == len(lengths) - 1:
            parts.append(members[np.lexsort((members, -counts[members]))])
            done += 1
            progress("bisection", done, total)
            return
        sizes = balanced_sizes(len(members), lengths[level])
        is_known = known[members]
        stock, begin = members[~is_known], 0
        clusters = bisect(
            unit, members[is_known], balanced_sizes(int(is_known.sum()), lengths[level]), counts
        )
        for cluster, size in zip(clusters, sizes, strict=True):
            end = begin + size - len(cluster)
            divide(np.concatenate([cluster, stock[begin:end]]), level + 1)
            begin = end

    divide(np.arange(vocab_size), 0)
    return order_slots(np.concatenate(parts), lengths)


def order_slots(order: Ints, lengths: Sequence[int]) -> Tensor:
    """Slots of tokens laid out in ``order``, groups of every level of balanced size.

    Shape: (V,) tokens, each once -> (V,) long. A group is never empty while another has two tokens.

    Raises:
        MHEError: too few slots.
    """
    lengths = parse_lengths(lengths, len(order))
    # Divide level by level: `group` counts the groups of the levels so far, `place` within the group.
    place, size = np.arange(len(order)), np.full(len(order), len(order))
    digits = np.empty((len(order), len(lengths)), dtype=np.int64)
    for level, length in enumerate(lengths[:-1]):
        # The first `more` groups hold one token more than the others.
        small, more = np.divmod(size, length)
        bound = more * (small + 1)
        is_large = place < bound
        divisor = np.where(is_large, small + 1, np.maximum(small, 1))
        start = np.where(is_large, 0, bound)
        digit, rest = np.divmod(place - start, divisor)
        digits[:, level] = np.where(is_large, digit, digit + more)
        place, size = rest, np.where(is_large, small + 1, small)
    digits[:, -1] = place
    slots = torch.empty(len(order), dtype=torch.long)
    slots[torch.from_numpy(np.ascontiguousarray(order))] = ravel(torch.from_numpy(digits), lengths)
    return slots


def balanced_sizes(count: int, parts: int) -> list[int]:
    """``parts`` sizes that add up to ``count`` and differ by at most one, larger ones first."""
    return [count // parts + (part < count % parts) for part in range(parts)]


def bisect(unit: Floats, members: Ints, sizes: Sequence[int], counts: Ints) -> Iterator[Ints]:
    """Divide ``members`` into clusters of the given sizes, by halves.

    Args:
        unit: (V, dim) vectors of length one (or zero).
        members: tokens to divide.
        sizes: of the clusters; they add up to ``len(members)``.
        counts: (V,) occurrences: of two halves the one with more comes first.

    Yields:
        the clusters, neighbours similar.
    """
    stack = [(members, 0, len(sizes))]
    while stack:
        tokens, low, high = stack.pop()
        if high - low == 1 or len(tokens) == 0:
            yield from (tokens if part == 0 else tokens[:0] for part in range(high - low))
            continue
        middle = (low + high) // 2
        first, second = sum(sizes[low:middle]), sum(sizes[middle:high])
        left = _half(unit[tokens], first)
        if first == second and counts[tokens[~left]].sum() > counts[tokens[left]].sum():
            left = ~left
        stack.append((tokens[~left], middle, high))
        stack.append((tokens[left], low, middle))


def _half(points: Floats, size: int, rounds: int = 10) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which ``size`` of the points make one of two compact parts: 2-means with fixed sizes, started along
    the first principal direction. Shape: (n, dim) -> (n,) bool."""
    if size in (0, len(points)):
        return np.full(len(points), size > 0)
    centred = points - points.mean(axis=0)
    direction = np.linalg.eigh(centred.T @ centred)[1][:, -1]
    # An eigenvector's sign is arbitrary; fix it.
    direction = direction * np.sign(direction[np.abs(direction).argmax()])
    left = np.zeros(len(points), dtype=np.bool_)
    for _ in range(rounds):
        last = left
        left = np.zeros(len(points), dtype=np.bool_)
        left[np.argsort(-(centred @ direction), kind="stable")[:size]] = True
        if (left == last).all():
            break
        direction = centred[left].mean(axis=0) - centred[~left].mean(axis=0)
    return left


def count_tokens(
    text: Iterable[Ints], vocab_size: int, progress: Progress = _no_progress, total: int = 0
) -> Ints:
    """How often each token occurs. Shape: arrays of tokens -> (V,) int64.

    Raises:
        MHEError: a token outside 0..V-1 (the text was made with another dictionary).
    """
    counts = np.zeros(vocab_size, dtype=np.int64)
    done = 0
    for chunk in text:
        if len(chunk) and not 0 <= chunk.min() <= chunk.max() < vocab_size:
            bad = int(chunk.max() if chunk.max() >= vocab_size else chunk.min())
            raise MHEError(
                f"the data has token {bad}, the dictionary has 0..{vocab_size - 1} only; "
                "they do not belong together"
            )
        counts += np.bincount(chunk, minlength=vocab_size)
        done += len(chunk)
        progress("counting tokens", done, max(done, total))
    return counts


def context_vectors(
    text: Iterable[Ints],
    counts: Ints,
    dim: int = 64,
    contexts: int = 4096,
    seed: int = 1,
    max_pairs: int = 40_000_000,
    progress: Progress = _no_progress,
) -> Floats:
    """A vector for each token from the tokens beside it in text.

    Positive pointwise mutual information with the ``contexts`` most frequent tokens to the left, and to the
    right; its singular vectors, times the square roots of the singular values. Memory: about 30 bytes
    for each of at most ``max_pairs`` different (token, context) pairs, and V x dim numbers; the rarest
    pairs are forgotten when there are more.

    Args:
        text: arrays of tokens, consecutive pieces of one stream (the sentence ends in it are contexts too).
        counts: (V,) from ``count_tokens``.
        dim: width of the vectors.
        contexts: context columns on each side.
        seed: of the randomised SVD.
        max_pairs: bound on the pairs kept.
        progress: told about stages "counting pairs" and "SVD".

    Returns:
        (V, dim) float32; zeros for tokens that never occur beside a context.
    """
    pairs = count_pairs(text, counts, contexts, max_pairs, progress)
    return vectors_of_pairs(pairs, dim, seed, progress)


def vectors_of_pairs(
    pairs: csr_matrix, dim: int = 64, seed: int = 1, progress: Progress = _no_progress
) -> Floats:
    """``context_vectors`` of neighbours that were counted, or of a weighted sum of such counts.

    Args:
        pairs: (V, 2 C) as from ``count_pairs``; a token that occurs has a weight of at least 1.
        dim, seed, progress: as for ``context_vectors``.

    Returns:
        (V, dim) float32; zeros for tokens without a neighbour.
    """
    matrix = ppmi(pairs)
    vectors = truncated_svd(matrix, dim, seed, progress)
    vectors[np.diff(matrix.indptr) == 0] = 0.0  # rounding left a little of other tokens there
    return vectors


def count_pairs(
    text: Iterable[Ints],
    counts: Ints,
    contexts: int,
    max_pairs: int = 40_000_000,
    progress: Progress = _no_progress,
) -> csr_matrix:
    """Neighbours counted. Shape: -> (V, 2 C) int32: columns 0..C-1 the token to the left, the rest to the
    right, of the C most frequent tokens."""
    from scipy.sparse import coo_matrix, csr_matrix

    vocab_size, total = len(counts), int(counts.sum())
    contexts = min(contexts, vocab_size)
    column = np.full(vocab_size, -1, dtype=np.int32)
    column[np.argsort(-counts, kind="stable")[:contexts]] = np.arange(contexts, dtype=np.int32)
    shape = (vocab_size, 2 * contexts)
    pairs = csr_matrix(shape, dtype=np.int32)
    last, done = np.zeros(0, dtype=np.int64), 0
    for chunk in text:
        # With the last token of the piece before, so that the pieces' sizes do not matter.
        tokens = np.concatenate([last, chunk]).astype(np.int32)
        last, done = chunk[-1:] if len(chunk) else last, done + len(chunk)
        before, after = tokens[:-1], tokens[1:]
        left, right = column[before], column[after]
        has_left, has_right = left >= 0, right >= 0
        rows = np.concatenate([after[has_left], before[has_right]])
        columns = np.concatenate([left[has_left], right[has_right] + np.int32(contexts)])
        ones = np.ones(len(rows), dtype=np.int32)
        pairs = pairs + coo_matrix((ones, (rows, columns)), shape=shape).tocsr()
        least = 1
        while pairs.nnz > max_pairs:
            pairs.data[pairs.data <= least] = 0
            pairs.eliminate_zeros()
            least += 1
        progress("counting pairs", done, max(done, total))
    return pairs


def ppmi(pairs: csr_matrix, smoothing: float = 0.75) -> csr_matrix:
    """max(0, log p(token, context) / (p(token) p(context))) of each side, float32, same shape.

    Contexts' probabilities are raised to ``smoothing``: rare contexts would else have the largest values.
    """
    half = pairs.shape[1] // 2
    sides = [_ppmi_side(pairs[:, :half], smoothing), _ppmi_side(pairs[:, half:], smoothing)]
    from scipy.sparse import hstack

    return hstack(sides, format="csr")


def _ppmi_side(pairs: csr_matrix, smoothing: float) -> csr_matrix:
    of_token = np.asarray(pairs.sum(axis=1, dtype=np.float64)).ravel()
    of_context = np.asarray(pairs.sum(axis=0, dtype=np.float64)).ravel() ** smoothing
    # Zeros never meet a pair; any value does.
    log_context = np.log(np.maximum(of_context, 1e-300) / max(of_context.sum(), 1e-300)).astype(np.float32)
    log_token = np.log(np.maximum(of_token, 1.0)).astype(np.float32)
    result = pairs.astype(np.float32)
    np.log(result.data, out=result.data)
    result.data -= log_context[result.indices]
    result.data -= np.repeat(log_token, np.diff(result.indptr))
    np.maximum(result.data, 0.0, out=result.data)
    result.eliminate_zeros()
    return result


def truncated_svd(
    matrix: csr_matrix | Floats, dim: int, seed: int = 1, progress: Progress = _no_progress, rounds: int = 4
) -> Floats:
    """First left singular vectors times the square roots of their values, by subspace iteration.

    Shape: (V, C), sparse or dense -> (V, min(dim, V, C)) float32. Deterministic for a seed.
    """
    width = min(dim + 10, *matrix.shape)
    rng = np.random.default_rng(seed)
    basis = matrix @ rng.standard_normal((matrix.shape[1], width), dtype=np.float32)
    progress("SVD", 1, rounds + 2)
    for done in range(rounds):
        # Orthonormal at every step: in float32 the small directions would drown otherwise.
        basis = np.linalg.qr(matrix.T @ np.linalg.qr(basis)[0])[0]
        basis = matrix @ basis
        progress("SVD", done + 2, rounds + 2)
    basis = np.linalg.qr(basis)[0]
    left, values, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    dim = min(dim, width)
    progress("SVD", rounds + 2, rounds + 2)
    vectors: Floats = (basis @ (left[:, :dim] * np.sqrt(values[:dim]))).astype(np.float32)
    return vectors


def embedding_vectors(embedding: Tensor, dim: int = 64, seed: int = 1) -> Floats:
    """An embedding matrix as vectors for ``cluster_slots``: centred, then its first ``dim`` directions.

    The mean, which all tokens share, would hide what tells them apart. Shape: (V, d) -> (V, dim) float32.

    Raises:
        MHEError: not a matrix, or NaN or infinity in it.
    """
    if embedding.dim() != 2:
        raise MHEError(f"an embedding is a V x d matrix, got shape {tuple(embedding.shape)}")
    matrix = embedding.detach().to("cpu", torch.float32).numpy()
    if not np.isfinite(matrix).all():
        raise MHEError("the embedding has NaN or infinity; take a checkpoint of a training that converged")
    return truncated_svd(matrix - matrix.mean(axis=0), dim, seed)
