"""What the project asks of its heads, to be shown beside what they do."""

from __future__ import annotations

#: The bars are for features of this width and batches of so many tokens.
DIM = 512
TOKENS = 2048

#: (V, head) -> how many times as fast as the dense softmax a training step must be.
RATIOS = {
    (32_768, "product"): 60.0,
    (32_768, "mixture"): 8.0,
    (32_768, "cascade"): 10.0,
    (32_768, "sampling"): 5.0,
    (262_144, "product"): 250.0,
    (262_144, "cascade"): 40.0,
}

#: Vocabularies for whose heads there is a bar.
VOCABULARIES = {vocab for vocab, _ in RATIOS}

#: Peak extra memory of a step, at most this share of the dense softmax's.
MEMORY_SHARE = 0.1

#: Time of a step grows with V to the power of at most this.
EXPONENT = 0.6

#: ... measured from at most the first to at least the second vocabulary.
EXPONENT_RANGE = (8192, 1_000_000)


def ratio_bar(vocab: int, dim: int, tokens: int, head: str) -> float | None:
    """The least ratio, or None where there is no bar."""
    return RATIOS.get((vocab, head)) if (dim, tokens) == (DIM, TOKENS) else None


def memory_bar(vocab: int, dim: int, tokens: int, head: str) -> float | None:
    """The largest share of the dense softmax's memory, or None where there is no bar."""
    at_shape = vocab in VOCABULARIES and (dim, tokens) == (DIM, TOKENS)
    return MEMORY_SHARE if at_shape and head != "softmax" else None


def exponent_bar(vocabs: list[int], dim: int, tokens: int) -> float | None:
    """The largest exponent, or None where there is no bar."""
    low, high = EXPONENT_RANGE
    in_range = min(vocabs) <= low and max(vocabs) >= high
    return EXPONENT if in_range and (dim, tokens) == (DIM, TOKENS) else None
