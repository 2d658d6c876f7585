"""Rows sent to other ranks and answers brought back, with gradients that go the other way."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhe_fairseq.heads.once import once
from mhe_fairseq.heads.sharded.shards import Shard, check_same


class Exchange:
    """Rows for every rank of a shard's group, and from every rank. All ranks have to take part alike.

    Args:
        sent: W counts, rows that go to each rank.
        received: W counts, rows that come from each rank.
        shard: whose ranks.
    """

    def __init__(self, sent: list[int], received: list[int], shard: Shard) -> None:
        self.sent = sent
        self.received = received
        self.shard = shard

    def send(self, rows: Tensor) -> Tensor:
        """Rows in order of the ranks they are for -> rows in order of the ranks they are from.

        Differentiable. Shape: (sum(sent), ...) -> (sum(received), ...).
        """
        moved: Tensor = _Moved.apply(rows, self.sent, self.received, self.shard.group)
        return moved

    def answer(self, rows: Tensor) -> Tensor:
        """The way back, differentiable. Shape: (sum(received), ...) -> (sum(sent), ...)."""
        moved: Tensor = _Moved.apply(rows, self.received, self.sent, self.shard.group)
        return moved


def exchanges(counts: Tensor, says: Tensor, shard: Shard) -> list[Exchange]:
    """Agree on several exchanges at once: one small message to every rank.

    Args:
        counts: (W, K) long: rows for each rank, of each of K exchanges.
        says: (2,) long: what every rank has to say alike (``check_same``).
        shard: whose ranks.

    Raises:
        MHEError: on every rank, where ranks have different codebooks or widths.
    """
    message = torch.cat([counts, says.expand(len(counts), -1)], dim=1)
    heard = torch.empty_like(message)
    _all_to_all(heard, message.contiguous(), None, None, shard.group)
    kinds = counts.size(1)
    heard = heard.cpu()
    check_same(says.cpu(), heard[:, kinds:])
    sent, received = counts.T.tolist(), heard[:, :kinds].T.tolist()
    return [Exchange(mine, theirs, shard) for mine, theirs in zip(sent, received, strict=True)]


def total_over_ranks(value: Tensor, shard: Shard) -> Tensor:
    """Sum over the ranks, of the same shape on each; so is its gradient."""
    total: Tensor = _Total.apply(value, shard.group)
    return total


class _Moved(torch.autograd.Function):
    @staticmethod
    def forward(rows: Tensor, sent: list[int], received: list[int], group: Any) -> Tensor:
        return _move(sent, received, group, rows)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, sent, received, group = inputs
        ctx.back = partial(_move, received, sent, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return once(ctx.back, grad), None, None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(value: Tensor, group: Any) -> Tensor:
        return _summed(group, value)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return once(partial(_summed, ctx.group), grad), None


def _summed(group: Any, value: Tensor) -> Tensor:
    total = value.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _move(sent: list[int], received: list[int], group: Any, rows: Tensor) -> Tensor:
    out = rows.new_empty(sum(received), *rows.shape[1:])
    _all_to_all(out, rows.contiguous(), received, sent, group)
    return out


def _all_to_all(
    out: Tensor, rows: Tensor, received: list[int] | None, sent: list[int] | None, group: Any
) -> None:
    """``torch.distributed.all_to_all_single``; message by message with a backend that has none (gloo in
    older versions of torch)."""
    try:
        dist.all_to_all_single(out, rows, received, sent, group=group)
    except RuntimeError as error:
        if "support" not in str(error):
            raise
        _one_by_one(out, rows, received, sent, group)


def _one_by_one(
    out: Tensor, rows: Tensor, received: list[int] | None, sent: list[int] | None, group: Any
) -> None:
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    incoming = out.split(received or len(out) // size)
    outgoing = rows.split(sent or len(rows) // size)
    incoming[rank].copy_(outgoing[rank])
    works = []
    for other in range(size):
        if other == rank:
            continue
        name = other if group is None else dist.get_global_rank(group, other)
        if outgoing[other].numel():
            works.append(dist.isend(outgoing[other], name, group=group))
        if incoming[other].numel():
            works.append(dist.irecv(incoming[other], name, group=group))
    for work in works:
        if work is not None:
            work.wait()
