"""Heads split over ranks beside whole ones with the same weights, and a batch for each rank."""

from __future__ import annotations

import random
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead, Margin, OutputHead, SamplingHead
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from tests.heads.oracle import features_for, targets_for

DIM = 6
Sharded = ShardedCascadeHead | ShardedSamplingHead

#: name -> arguments of a head, number of digits.
CASCADES: dict[str, tuple[dict[str, Any], int]] = {
    "cascade": ({}, 2),
    "cascade of three digits": ({}, 3),
    "cascade bottleneck": ({"bottleneck": 3}, 2),
    "cascade bottleneck of three digits": ({"bottleneck": 3}, 3),
    "cascade per-level": ({"smoothing_form": "per-level"}, 3),
    "cascade prototypes": ({"group_prototypes": 3}, 2),
}
SAMPLINGS: dict[str, tuple[dict[str, Any], int]] = {
    "sampling": ({"groups": 1}, 2),
    "sampling of three digits": ({"groups": 2}, 3),
    "sampling own": ({"variant": "own"}, 2),
    "sampling batch": ({"variant": "batch"}, 2),
    "sampling arcface": ({"groups": 2, "margin": Margin(scale=6.0)}, 2),
    "sampling cosface batch": ({"variant": "batch", "margin": Margin("cosface", scale=6.0)}, 3),
}
HEADS = {**CASCADES, **SAMPLINGS}


def some_book(digits: int, seed: int) -> Codebook:
    """Random lengths, holes anywhere, three groups of tokens at least."""
    chance = random.Random(seed)
    while True:
        lengths = [chance.randint(3, 7), *(chance.randint(1, 5) for _ in range(digits - 1))]
        size = int(torch.tensor(lengths).prod())
        vocab = chance.randint(max(3, size // 3), size)
        slots = torch.randperm(size, generator=torch.Generator().manual_seed(seed))[:vocab]
        book = Codebook(lengths, slots)
        if len(book.digits(torch.arange(vocab))[:, 0].unique()) >= 3:
            return book


def pair(name: str, book: Codebook, dtype: torch.dtype, seed: int) -> tuple[Any, Any]:
    """A whole head, the same on every rank, and this rank's part of it."""
    arguments, _ = HEADS[name]
    torch.manual_seed(seed)
    whole: OutputHead
    sharded: Sharded
    if name in CASCADES:
        whole = CascadeHead(DIM, book, **arguments)
        sharded = ShardedCascadeHead(DIM, book, Shard.of(), **arguments)
    else:
        whole = SamplingHead(DIM, book, **arguments)
        sharded = ShardedSamplingHead(DIM, book, Shard.of(), **arguments)
    for parameter in whole.parameters():
        nn.init.normal_(parameter)
    sharded.load_state_dict(whole.state_dict())
    return whole.to(dtype), sharded.to(dtype)


def batches(book: Codebook, counts: list[int], dtype: torch.dtype, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Each rank's features and targets."""
    return [
        (features_for(n, DIM, dtype, seed + rank), targets_for(book, n, seed + rank))
        for rank, n in enumerate(counts)
    ]


def counts_for(kind: str, seed: int) -> list[int]:
    size = dist.get_world_size()
    if kind == "none anywhere":
        return [0] * size
    counts = [random.Random(seed + rank).choice([1, 2, 7, 23]) for rank in range(size)]
    if kind == "none on one rank":
        counts[seed % size] = 0
    return counts


def combined(loss: Any) -> Tensor:
    """A different weight for every token, so that none can take another's place."""
    weight = torch.arange(1, len(loss.nll) + 1).to(loss.nll)
    total: Tensor = (loss.nll * weight).sum()
    return total if loss.smooth is None else total + 0.3 * (loss.smooth * weight.flip(0)).sum()
