"""What every head costs for a vocabulary, counted."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.assign import frequency_slots
from mhe_fairseq.heads.cascade.head import SMOOTHING_GROUPS
from mhe_fairseq.heads.sampling.group_sample import expected_share, inclusion_probabilities
from mhe_fairseq.heads.sampling.head import DRAWING, default_groups

MIXTURES = 8

#: A forward pass is one multiply-add a weight; the backward pass two, for features and for weights.
_TRAINING_PASSES = 3


@dataclass(frozen=True)
class HeadPlan:
    """One head's cost.

    Attributes:
        head: name.
        options: what to give to fairseq-train.
        lengths: of its digits; () for the softmax.
        holes: slots without a token.
        parameters: added to the model.
        train_macs: multiply-adds a token in a training step, forward and backward.
        train_bytes: of fp32 scores held for a token in a training step.
        search_macs: multiply-adds a hypothesis in a step of beam search, the 2 x beam best tokens found
            exactly.
        search_bytes: of fp32 scores made for it.
        groups: of tokens that are not empty; None where rows are not read by groups.
        touched_groups: expected number of groups whose rows a training batch reads and writes.
        drawn: groups that tokens are scored on beside their own, in training.
    """

    head: str
    options: str
    lengths: tuple[int, ...]
    holes: int
    parameters: int
    train_macs: int
    train_bytes: int
    search_macs: int
    search_bytes: int
    groups: int | None = None
    touched_groups: float | None = None
    drawn: int | None = None

    @property
    def kind(self) -> str:
        """The first word of its name: "softmax", "product", "mixture", "cascade", "sampling", "predicted"."""
        return self.head.replace(",", " ").split()[0]


def smoothing_groups(groups: int) -> int:
    """Groups that a cascade of so many smooths a token on."""
    return max(1, min(SMOOTHING_GROUPS, groups - 1))


def plan_heads(
    counts: Tensor, lengths: tuple[int, ...], dim: int, batch_tokens: int, beam: int, prototypes: int = 1
) -> list[HeadPlan]:
    """Every head's cost.

    Args:
        counts: (V,) frequencies of the tokens, any scale.
        lengths: two or three.
        dim: d.
        batch_tokens: tokens in a batch.
        beam: width of the search, which asks for the 2 x beam best tokens.
        prototypes: m, rows of a cascade's groups.
    """
    vocab = len(counts)
    book = Codebook(lengths, frequency_slots(vocab, lengths))
    best = min(2 * beam, vocab)
    rows = sum(lengths)
    holes, shown = book.holes, ",".join(map(str, lengths))
    whole = f"--mhe-lengths {shown}"
    plans = [
        HeadPlan(
            head="softmax",
            options="--mhe-head softmax",
            lengths=(),
            holes=0,
            parameters=vocab * dim,
            train_macs=_TRAINING_PASSES * vocab * dim,
            train_bytes=4 * vocab,
            search_macs=vocab * dim,
            search_bytes=4 * vocab,
        )
    ]
    # The best pairs are among those with (i + 1)(j + 1) <= k.
    pairs = sum(best // (i + 1) for i in range(best))
    plans.append(
        HeadPlan(
            head="product",
            options=f"--mhe-head product {whole}",
            lengths=lengths,
            holes=holes,
            parameters=rows * (dim + 1),
            train_macs=_TRAINING_PASSES * rows * dim,
            train_bytes=4 * rows,
            search_macs=rows * dim,
            search_bytes=4 * (rows + (len(lengths) - 1) * pairs),
        )
    )
    mixed = MIXTURES * (rows + 1)
    # Rows of the first digit are opened best first; a few are enough for most tokens.
    table = min(lengths[0], max(8, best)) * (book.size // lengths[0])
    plans.append(
        HeadPlan(
            head=f"mixture of {MIXTURES}",
            options=f"--mhe-head product --mhe-mixtures {MIXTURES} {whole}",
            lengths=lengths,
            holes=holes,
            parameters=mixed * (dim + 1),
            train_macs=_TRAINING_PASSES * mixed * dim,
            train_bytes=4 * mixed,
            search_macs=mixed * dim + MIXTURES * table,
            search_bytes=4 * (mixed + table),
        )
    )
    leaves = torch.unique(book.slots // lengths[-1]).numel()
    # Every digit after the first has a table of rows for each prefix, its last one may be the embedding.
    inner = sum(math.prod(lengths[:level]) for level in range(2, len(lengths)))
    drawn = smoothing_groups(leaves)
    estimated = drawn * sum(lengths[1:])
    first = prototypes * lengths[0]
    trained = first + sum(lengths[1:]) + estimated
    opened = first + sum(lengths[1:-1]) + min(best, leaves) * lengths[-1]
    touched = _touched(counts, book.slots // lengths[-1], batch_tokens)
    for tied in (False, True):
        plans.append(
            HeadPlan(
                head="cascade, tied" if tied else "cascade",
                options=f"--mhe-head cascade {whole}"
                + (f" --mhe-group-prototypes {prototypes}" if prototypes > 1 else "")
                + (" --share-decoder-input-output-embed" if tied else ""),
                lengths=lengths,
                holes=holes,
                parameters=first * (dim + 1) + (inner + (0 if tied else book.size)) * dim,
                train_macs=_TRAINING_PASSES * trained * dim,
                train_bytes=4 * trained,
                search_macs=opened * dim,
                search_bytes=4 * opened,
                groups=leaves,
                touched_groups=touched,
                drawn=drawn,
            )
        )
    for variant in DRAWING:
        if (sampling := _sampling(book, counts, dim, batch_tokens, variant)) is not None:
            plans.append(sampling)
    return plans


def _sampling(book: Codebook, counts: Tensor, dim: int, batch_tokens: int, variant: str) -> HeadPlan | None:
    """The plan of the sampling head, whose groups are the first digits; None with a single group."""
    vocab = len(book)
    group = torch.unique(book.slots // (book.size // book.lengths[0]), return_inverse=True)[1]
    sizes = torch.bincount(group)
    drawn = default_groups(book)
    if drawn is None:
        return None
    scored = (1 + drawn) * math.ceil(vocab / len(sizes))
    shown = ",".join(map(str, book.lengths))
    if variant == "predicted":
        # A linear soft-max over groups predicts them; a batch of tokens that draw each their own meets all.
        name, predictor, touched = "predicted", book.lengths[0], float(len(sizes))
    else:
        inclusion = inclusion_probabilities(expected_share(group, sizes), drawn)
        name, predictor, touched = "sampling", 0, _touched(counts, group, batch_tokens, inclusion)
    return HeadPlan(
        head=f"{name} of {drawn}",
        options=f"--mhe-head sampling --mhe-sampling {variant} --mhe-groups {drawn} --mhe-lengths {shown}",
        lengths=book.lengths,
        holes=book.holes,
        parameters=vocab * dim + predictor * (dim + 1),
        # What predicts has no gradient for the features.
        train_macs=(_TRAINING_PASSES * scored + (_TRAINING_PASSES - 1) * predictor) * dim,
        train_bytes=4 * (scored + predictor),
        search_macs=vocab * dim,
        search_bytes=4 * vocab,
        groups=len(sizes),
        touched_groups=touched,
        drawn=drawn,
    )


def _touched(counts: Tensor, group: Tensor, batch_tokens: int, inclusion: Tensor | None = None) -> float:
    """Expected number of groups with a token among ``batch_tokens`` drawn by frequency, or sampled."""
    _, group = torch.unique(group, return_inverse=True)
    share = counts.double() / counts.sum().clamp(min=1)
    mass = torch.zeros(int(group.max()) + 1, dtype=torch.float64).index_add_(0, group, share)
    missed = (1.0 - mass.clamp(max=1.0)) ** batch_tokens
    if inclusion is not None:
        missed = missed * (1.0 - inclusion)
    return round(float((1.0 - missed).sum()), 1)
