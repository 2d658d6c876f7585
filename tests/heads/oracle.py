"""Dense V-wide references in float64, written without the heads' code, and random cases to compare on."""

from __future__ import annotations

import itertools
import math

import torch
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, ProductHead, SoftmaxHead

#: Largest error allowed for log-probabilities computed from features and weights of a dtype, as a factor
#: of the largest logit: half precision rounds the logits themselves.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}


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


def softmax_logits(
    head: SoftmaxHead, features: Tensor, weight: Tensor, target: Tensor | None = None
) -> Tensor:
    """Logits of all tokens; with a margin they are of angles, that of the target, if told, made harder.

    Shape: (N, d), (V, d), (N,) -> (N, V).
    """
    margin = head.margin
    if margin is None:
        return features @ weight.T
    lengths = features.norm(dim=1, keepdim=True) * weight.norm(dim=1)
    cosine = (features @ weight.T) / lengths.masked_fill(lengths == 0, 1.0)
    if target is not None:
        is_gold = torch.arange(len(weight)) == target.unsqueeze(1)
        angle = cosine.detach().clamp(-1, 1).arccos()
        # cos(t + m) without the inverse's infinite slope at both ends.
        turned = cosine * math.cos(margin.m) - (1 - cosine**2).clamp(min=0).sqrt() * math.sin(margin.m)
        beyond = cosine - margin.m * math.sin(margin.m)
        bent = torch.where(angle + margin.m <= math.pi, turned, beyond)
        cosine = torch.where(is_gold, bent if margin.kind == "arcface" else cosine - margin.m, cosine)
    return margin.scale * cosine


def softmax_oracle(head: SoftmaxHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64."""
    if head.margin is not None:
        return softmax_logits(head, features.double(), head.table.weight.double()).log_softmax(-1)
    return torch.log_softmax(features.double() @ head.table.weight.double().T, dim=-1)


def product_oracle(head: ProductHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64: every token's product written out, then normalised."""
    book, mixtures = head.codebook, head.mixtures
    x, weight, bias = features.double(), head.weight.double(), head.bias.double()
    if head.singles is not None:
        weight = weight.clone()
        table = head.singles._embedding[0].weight.double()
        first = book.digits(torch.arange(len(book)))[:, 0]
        for digit in range(book.lengths[0]):
            if int((first == digit).sum()) == 1:
                for k in range(mixtures):
                    weight[k * book.lengths[0] + digit] += table[first == digit].squeeze(0)
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


def cascade_oracle(head: CascadeHead, features: Tensor) -> Tensor:
    """(N, V) log-probabilities in float64."""
    return torch.stack(cascade_level_log_probs(head, features)).sum(dim=0)


def cascade_level_log_probs(head: CascadeHead, features: Tensor) -> list[Tensor]:
    """H tensors (N, V), float64: log p(digit h of the token | its digits before)."""
    book, x = head.codebook, features.double()
    local = x if head.project is None else x @ head.project.weight.double().T
    digits = book.digits(torch.arange(len(book))).tolist()
    last = book.heads - 1

    def row(prefix: tuple[int, ...], digit: int, token: int) -> Tensor:
        if not prefix:
            count = head.group.prototypes
            own = slice(digit * count, (digit + 1) * count)
            weight = head.group.weight[own].double()
            tokens = book.digits(torch.arange(len(book)))[:, 0] == digit
            if head.group.singles is not None and int(tokens.sum()) == 1:
                weight = weight + head.group.singles._embedding[0].weight[tokens].double()
            return (x @ weight.T + head.group.bias[own].double()).exp().sum(dim=-1).log()
        if len(prefix) < last:
            assert head.subgroup is not None
            return x @ head.subgroup.table[prefix[0], digit].double()
        if head.is_tied:
            return local @ head.local.weight[token].double()
        group = prefix[0] if last == 1 else prefix[0] * book.lengths[1] + prefix[1]
        return local @ head.local.table[group, digit].double()

    result = []
    for h in range(book.heads):
        families: dict[tuple[int, ...], dict[int, int]] = {}
        for token, code in enumerate(digits):
            families.setdefault(tuple(code[:h]), {})[code[h]] = token
        chosen: dict[tuple[int, ...], Tensor] = {}
        for prefix, children in families.items():
            logits = torch.stack([row(prefix, digit, token) for digit, token in children.items()], dim=-1)
            for digit, column in zip(children, logits.log_softmax(-1).unbind(-1), strict=True):
                chosen[(*prefix, digit)] = column
        result.append(torch.stack([chosen[tuple(code[: h + 1])] for code in digits], dim=-1))
    return result


def features_for(count: int, dim: int, dtype: torch.dtype, seed: int) -> Tensor:
    """(N, d), deterministic for a seed, and the same values (to rounding) in every dtype."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dim, generator=generator, dtype=torch.float64).to(dtype)


def targets_for(book: Codebook, count: int, seed: int) -> Tensor:
    """(N,) tokens, deterministic for a seed."""
    return torch.randint(len(book), (count,), generator=torch.Generator().manual_seed(seed))


def weighed(nll: Tensor, smooth: Tensor | None) -> Tensor:
    """A sum with another weight for every row and either part of a loss. Shape: (N,) each -> ()."""
    scale = torch.arange(1.0, len(nll) + 1, dtype=torch.float64)
    return (nll * scale).sum() + (0.0 if smooth is None else 0.3 * (smooth * scale).sum())
