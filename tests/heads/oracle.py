"""Dense V-wide references in float64, written without the heads' code, and random cases to compare on."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead, SoftmaxHead

#: Largest error allowed for log-probabilities computed from features and weights of a dtype, as a factor
#: of the largest logit: half precision rounds the logits themselves.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}


@st.composite
def codebooks(draw: st.DrawFn, max_vocab: int = 2000, min_heads: int = 1, max_heads: int = 3) -> Codebook:
    """Codebooks of V tokens in H digits, holes at the end, at the ends of rows, or anywhere."""
    vocab = draw(st.integers(1, max_vocab))
    heads = draw(st.integers(min_heads, max_heads))
    lengths = []
    for _ in range(heads - 1):
        lengths.append(draw(st.integers(1, max(1, math.ceil(vocab ** (1 / heads) * 1.5)))))
    lengths.append(math.ceil(vocab / math.prod(lengths)) + draw(st.integers(0, 2)))
    size = math.prod(lengths)
    order = draw(st.sampled_from(["dictionary", "shuffled", "spread"]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    if order == "dictionary":
        slots = torch.arange(vocab)
    elif order == "shuffled":
        slots = torch.randperm(size, generator=generator)[:vocab]
    else:
        slots = (torch.arange(vocab) * (size / vocab)).long()
    return Codebook(lengths, slots)


def softmax_oracle(head: SoftmaxHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64."""
    return torch.log_softmax(features.double() @ head.table.weight.double().T, dim=-1)


def product_oracle(head: ProductHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64: every token's product written out, then normalised."""
    book, mixtures = head.codebook, head.mixtures
    x, weight, bias = features.double(), head.weight.double(), head.bias.double()
    log_p, start = [], 0
    for length in book.lengths:
        part = torch.stack(
            [
                torch.log_softmax(
                    x @ weight[start + k * length : start + (k + 1) * length].T
                    + bias[start + k * length : start + (k + 1) * length],
                    dim=-1,
                )
                for k in range(mixtures)
            ],
            dim=1,
        )
        log_p.append(part)
        start += mixtures * length
    if head.gate is None:
        log_gate = x.new_zeros(len(x), 1)
    else:
        log_gate = torch.log_softmax(x @ head.gate.weight.double().T + head.gate.bias.double(), dim=-1)
    digits_of_slot = list(itertools.product(*(range(length) for length in book.lengths)))
    columns = []
    for slot in book.slots.tolist():
        digits = digits_of_slot[slot]
        columns.append(log_gate + sum(p[:, :, d] for p, d in zip(log_p, digits, strict=True)))
    joint = torch.stack(columns, dim=-1).logsumexp(dim=1)
    return joint - joint.logsumexp(dim=-1, keepdim=True)


def features_for(count: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """(N, d), deterministic for a seed, and the same values (to rounding) in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)
