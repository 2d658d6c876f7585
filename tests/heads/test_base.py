"""What every head refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, ProductHead, SamplingHead, SoftmaxHead

#: What is called with features x (N, d) and tokens y (N,).
CALLS: dict[str, Callable[[Any, Any, Any], Any]] = {
    "forward": lambda head, x, y: head(x, y),
    "log_prob": lambda head, x, y: head.log_prob(x, y),
    "log_probs": lambda head, x, y: head.log_probs(x),
    "topk": lambda head, x, y: head.topk(x, 2),
    "log_prob_of": lambda head, x, y: head.log_prob_of(x, y[:2]),
    "candidates": lambda head, x, y: head.candidates(x, 2, y[:1]),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", [ProductHead, CascadeHead, SamplingHead, SoftmaxHead])
def test_features_of_another_device(kind: Callable[..., OutputHead], call: str) -> None:
    head = kind(8, Codebook((5, 8), vocab_size=40))
    features, tokens = torch.randn(3, 8), torch.tensor([1, 4, 39])
    said = r"the head is on cpu and was given a tensor on meta; move the head with head\.to\('meta'\), or the"
    with pytest.raises(MHEError, match=said):
        CALLS[call](head, features.to("meta"), tokens)
    CALLS[call](head, features, tokens)


@pytest.mark.parametrize("kind", [ProductHead, CascadeHead, SamplingHead, SoftmaxHead])
def test_targets_of_another_device(kind: Callable[..., OutputHead]) -> None:
    head = kind(8, Codebook((5, 8), vocab_size=40))
    with pytest.raises(MHEError, match="the head is on cpu and was given a tensor on meta"):
        head(torch.randn(3, 8), target=torch.zeros(3, dtype=torch.long, device="meta"))
