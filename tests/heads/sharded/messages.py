"""Cases: what ranks send each other, under torch's DDP and in a process group of their own too."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import CascadeHead
from mhe_fairseq.heads.sharded import exchange
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from mhe_fairseq.heads.sharded.state import names_of_parts
from scripts.study.scale_costs import exchanged, message_bytes
from tests.heads.oracle import features_for, targets_for
from tests.heads.sharded.pairs import DIM, batches, combined, counts_for, some_book


def message_by_message() -> None:
    """Where a backend has no all-to-all."""
    rank, size = dist.get_rank(), dist.get_world_size()
    sent = [(rank + other) % 3 for other in range(size)]
    received = [(rank + other) % 3 for other in range(size)]
    rows = torch.arange(sum(sent) * 2.0).view(-1, 2) + 100 * rank
    out, other = rows.new_zeros(sum(received), 2), rows.new_zeros(sum(received), 2)
    dist.all_to_all_single(out, rows, received, sent)
    exchange._one_by_one(other, rows, received, sent, None)
    assert torch.equal(out, other)
    even, other = torch.zeros(size), torch.zeros(size)
    mine = torch.arange(float(size)) + 10 * rank
    dist.all_to_all_single(even, mine)
    exchange._one_by_one(other, mine, None, None, None)
    assert torch.equal(even, other)


def counted(name: str) -> None:
    """The bytes that leave ranks are those of the formulas in scripts/study/scale_costs.py."""
    rank, size, dim, tokens, value = dist.get_rank(), dist.get_world_size(), 16, 400, 4
    book = Codebook((6 * size, 8))
    head: Any
    if name == "cascade":
        asked, columns = 3, 3
        head = ShardedCascadeHead(dim, book, Shard.of())
    else:
        asked, columns = 4, 2
        head = ShardedSamplingHead(dim, book, Shard.of(), groups=3)
    bytes_sent, rows_sent, pairs_sent, real = 0, 0, 0, exchange._all_to_all

    def counting(
        out: Tensor, rows: Tensor, received: list[int] | None, sent: list[int] | None, group: Any
    ) -> None:
        nonlocal bytes_sent, rows_sent, pairs_sent
        if sent is not None:  # not the small message that tells how many there will be
            away = sum(count for other, count in enumerate(sent) if other != rank)
            bytes_sent += away * rows[:1].numel() * rows.element_size()
            rows_sent += away if rows.size(1) == dim else 0
            pairs_sent += away if rows.dtype == torch.long else 0
        real(out, rows, received, sent, group)

    updates = 30
    exchange._all_to_all = counting
    try:
        for update in range(updates):
            head.set_num_updates(update)
            x = features_for(tokens, dim, torch.float32, update).requires_grad_()
            combined(head(x, targets_for(book, tokens, 1000 * rank + update))).backward()
    finally:
        exchange._all_to_all = real
    total = torch.tensor([bytes_sent, rows_sent, pairs_sent], dtype=torch.float64)
    dist.all_reduce(total)
    # To the byte, from the rows (there, and their gradients back) and pairs that left ranks.
    assert total[0] == message_bytes(float(total[1]) / 2, float(total[2]), dim, value, columns)
    # And of so many as are expected where groups lie anywhere.
    expected = exchanged(tokens, asked, size, dim, value, columns) * size * updates
    print(f"{name}, {size} ranks: {int(total[0])} bytes sent, {expected:.0f} expected")
    assert abs(float(total[0]) / expected - 1) < 0.05


def under_torchs_ddp() -> None:
    """Gradients of all else are averaged, the table's are let alone."""
    book, rank, size = some_book(2, 9), dist.get_rank(), dist.get_world_size()

    class Model(nn.Module):
        def __init__(self, sharded: bool) -> None:
            super().__init__()
            torch.manual_seed(3)
            self.below = nn.Linear(DIM, DIM)
            self.head: Any = ShardedCascadeHead(DIM, book, Shard.of()) if sharded else CascadeHead(DIM, book)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return combined(self.head(self.below(x), y))

    whole, model = Model(False), Model(True)
    model._ddp_params_and_buffers_to_ignore = names_of_parts(model)  # type: ignore[assignment]
    wrapped = nn.parallel.DistributedDataParallel(model)
    everyones = batches(book, counts_for("none on one rank", 1), torch.float32, 1)
    for each in (whole, model):
        each.head.set_num_updates(1)
    for x, y in everyones:
        whole(x, y).backward()
    wrapped(*everyones[rank]).backward()
    wanted = dict(whole.named_parameters())
    for name, parameter in model.named_parameters():
        grad = wanted[name].grad
        assert grad is not None
        is_part = name == "head.local.table"
        expected = model.head.own_rows(grad) if is_part else grad / size
        torch.testing.assert_close(parameter.grad, expected, msg=name, rtol=1e-4, atol=1e-4)


def a_part_of_the_ranks() -> None:
    """A process group of its own, whose ranks are not numbered as all processes are."""
    size = dist.get_world_size()
    group = dist.new_group([size - 2, size - 1])
    if dist.get_rank() < size - 2:
        return
    book = some_book(2, 8)
    torch.manual_seed(1)
    whole = CascadeHead(DIM, book)
    head = ShardedCascadeHead(DIM, book, Shard.of(group))
    head.load_state_dict(whole.state_dict())
    x, y = features_for(5, DIM, torch.float32, 1), targets_for(book, 5, 1)
    torch.testing.assert_close(head.log_prob(x, y), whole.log_prob(x, y))
    state = head.whole_state()
    assert (state is not None) == (dist.get_rank() == size - 2)
    if state is not None:
        torch.testing.assert_close(state["local.table"], whole.local.table.detach())
