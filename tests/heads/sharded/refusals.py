"""Cases: what a split head refuses, and what it says."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from tests.heads.sharded.pairs import DIM


def told(action: Callable[[], object]) -> str:
    try:
        action()
    except MHEError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def too_many_ranks() -> None:
    size = dist.get_world_size()
    book = Codebook((size - 1, 8))
    for make in (ShardedCascadeHead, ShardedSamplingHead):
        text = told(lambda make=make: make(DIM, book, Shard.of()))  # type: ignore[misc]
        assert f"a table of {size - 1} groups cannot be split over {size} ranks" in text
        assert f"at most {size - 1} ranks, or a codebook whose first length is {size} or more" in text


def different_codebooks() -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    books = [Codebook((4, 5), torch.arange(18)), Codebook((4, 5), torch.arange(18).flip(0))]
    mine = books[rank == size - 1]
    for make in (ShardedCascadeHead, ShardedSamplingHead):
        head = make(DIM, mine, Shard.of())
        text = told(lambda head=head: head(torch.zeros(2, DIM), torch.tensor([1, 2])))  # type: ignore[misc]
        assert f"rank 0 has {books[0].fingerprint}" in text
        assert f"rank {size - 1} has {books[1].fingerprint}" in text


def different_widths() -> None:
    rank, book = dist.get_rank(), Codebook((4, 5))
    head = ShardedCascadeHead(DIM + rank, book, Shard.of())
    text = told(lambda: head(torch.zeros(1, DIM + rank), torch.tensor([1])))
    assert f"different widths: rank 0 has {DIM}, rank 1 has {DIM + 1}" in text


def not_split() -> None:
    book = Codebook((4, 5))
    for make in (ShardedCascadeHead, ShardedSamplingHead):
        assert "cannot be tied" in told(
            lambda make=make: make(DIM, book, Shard.of(), tied=nn.Embedding(20, DIM))  # type: ignore[misc]
        )
    head = ShardedCascadeHead(DIM, book, Shard.of())
    assert "several labels" in told(lambda: head.label_loss(torch.zeros(1, DIM), [[1]]))
    assert "multi-label" in told(lambda: head.multilabel_scores(torch.zeros(1, DIM), 1))
    assert "multi-label" in told(lambda: head.multilabel_loss(torch.zeros(1, DIM), [[1]], 1))
