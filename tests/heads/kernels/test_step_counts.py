"""Steps start as many operators and kernels as the package says."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from mhe_fairseq.bench.steps import dense_loss
from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead
from mhe_fairseq.heads.cascade.group import GroupLinear
from mhe_fairseq.heads.kernels.step_counts import merging_launches, search_launches, training_launches
from tests.heads.kernels.both import Operators, operators_of_a_step
from tests.heads.oracle import features_for, targets_for

DIM = 16
BOOKS = {2: Codebook((9, 21), vocab_size=150), 3: Codebook((4, 5, 9), vocab_size=150)}
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)


def build(name: str, book: Codebook) -> OutputHead:
    embedding = torch.nn.Embedding(len(book), DIM) if name.endswith("tied") else None
    if name.startswith("cascade"):
        return CascadeHead(DIM, book, tied=embedding, group_prototypes=4 if "prototypes" in name else 1)
    if name.startswith(("sampling", "predicted")):
        variant = "predicted" if name.startswith("predicted") else "shared"
        return SamplingHead(DIM, book, groups=3, tied=embedding, variant=variant)
    return ProductHead(DIM, book, mixtures=8 if name == "mixture" else 1)


@TYPES
@pytest.mark.parametrize("digits", BOOKS)
@pytest.mark.parametrize(
    "name",
    [
        "product", "mixture", "cascade", "cascade, tied", "cascade, prototypes", "sampling", "sampling, tied",
        "predicted", "predicted, tied",
    ],
)  # fmt: skip
def test_training(name: str, digits: int, dtype: torch.dtype) -> None:
    book, kind = BOOKS[digits], name.split(",")[0]
    head = build(name, book).to(dtype)
    operators = operators_of_a_step(
        head, features_for(50, DIM, dtype, 1).requires_grad_(), targets_for(book, 50, 1)
    )
    # What was drawn is copied to a GPU: of predicted groups an order and a shift for each row.
    counted = operators.total + {"product": 0, "predicted": 2}.get(kind, 1)
    assert counted <= training_launches(kind, digits), operators.counts
    # Nor does the package say many more than there are: other versions of torch, and fp32, have a few less.
    few = 16 if kind == "predicted" else 3
    assert counted >= training_launches(kind, digits) - few, operators.counts


@TYPES
def test_training_of_a_softmax(dtype: torch.dtype) -> None:
    weight = torch.randn(150, DIM, dtype=dtype, requires_grad=True)
    x, y = features_for(50, DIM, dtype, 1).requires_grad_(), targets_for(BOOKS[2], 50, 1)
    operators = Operators()
    with operators:
        dense_loss(weight, x, y, smoothing=True).backward()
    assert training_launches("softmax") - 3 <= operators.total <= training_launches("softmax"), (
        operators.counts
    )


@TYPES
@pytest.mark.parametrize("kind", ["softmax", "sampling"])
def test_search_over_all_tokens(kind: str, dtype: torch.dtype) -> None:
    """What fairseq's ``SequenceGenerator`` does with a decoder's features, its ``BeamSearch`` included."""
    from fairseq import utils
    from fairseq.data import Dictionary
    from fairseq.search import BeamSearch

    dictionary = Dictionary()
    for i in range(146):
        dictionary.add_symbol(f"w{i}")
    search, beam, sentences = BeamSearch(dictionary), 5, 3
    x, weight = torch.randn(beam * sentences, DIM, dtype=dtype), torch.randn(150, DIM, dtype=dtype)
    scores = torch.randn(sentences, beam, 4)
    operators = Operators()
    with torch.no_grad(), operators:
        log_probs = utils.log_softmax(F.linear(x, weight).div_(1.0), dim=-1)
        log_probs[log_probs != log_probs] = torch.tensor(-math.inf).to(log_probs)
        log_probs[:, dictionary.pad()] = -math.inf
        log_probs[:, dictionary.unk()] -= 0.0
        search.step(4, log_probs.view(sentences, beam, -1), scores)
    counted = operators.total + 1  # -inf is copied to a GPU
    assert search_launches(kind) - 3 <= counted <= search_launches(kind), operators.counts


@pytest.mark.parametrize("prototypes", [1, 2, 3, 4, 5, 6, 7, 8, 12, 64])
def test_merging_rows_of_groups(prototypes: int) -> None:
    group = GroupLinear(DIM, BOOKS[2], prototypes=prototypes)
    logits = torch.randn(3, 9 * prototypes)
    operators = Operators()
    with torch.no_grad(), operators:
        merged = group.merge(logits)
    assert operators.total == merging_launches(prototypes), operators.counts
    torch.testing.assert_close(merged, logits.view(3, 9, prototypes).logsumexp(dim=-1))
