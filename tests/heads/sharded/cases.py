"""What the ranks of ``test_sharded.py`` run: heads split over ranks, beside whole ones and dense oracles."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, OutputHead, SamplingHead
from mhe_fairseq.heads.sharded import exchange
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from mhe_fairseq.heads.sharded.state import names_of_parts
from scripts.study.scale_costs import exchanged, message_bytes
from tests.heads.oracle import TOLERANCE, cascade_oracle, features_for, softmax_oracle, targets_for
from tests.heads.sampling.cases import dense_estimate, samples_of

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


def compare(
    name: str, kind: str, dtype: torch.dtype, smoothing: bool, seed: int, training: bool = True
) -> None:
    """Loss and every gradient against the whole head, which gets the ranks' batches one after the other."""
    book = some_book(HEADS[name][1], seed)
    whole, head = pair(name, book, dtype, seed)
    everyones = batches(book, counts_for(kind, seed), dtype, seed)
    rank = dist.get_rank()
    for each in (whole, head):
        each.train(training)
        each.set_num_updates(seed)
    close = functools.partial(
        torch.testing.assert_close, atol=50 * TOLERANCE[dtype], rtol=50 * TOLERANCE[dtype]
    )
    expected, grads = [], []
    for x, y in everyones:
        x = x.clone().requires_grad_()
        loss = whole(x, y, smoothing=smoothing, accuracy=True)
        combined(loss).backward()
        expected.append(loss)
        grads.append(x.grad)
    x, y = everyones[rank]
    x = x.clone().requires_grad_()
    loss = head(x, y, smoothing=smoothing, accuracy=True)
    combined(loss).backward()
    close(loss.nll, expected[rank].nll)
    assert (loss.smooth is None) == (not smoothing)
    if smoothing:
        close(loss.smooth, expected[rank].smooth)
    assert loss.stats.keys() == expected[rank].stats.keys()
    for stat, value in loss.stats.items():
        close(value, expected[rank].stats[stat], msg=stat)
    assert x.grad is not None
    close(x.grad, grads[rank])
    wanted = {key: parameter.grad for key, parameter in whole.named_parameters()}
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        if key == head.sharded_name:
            close(parameter.grad, head.own_rows(wanted[head.whole_name]), msg=key)
        else:
            total = parameter.grad.clone()
            dist.all_reduce(total)
            close(total, wanted[key], msg=key)
    if training:
        against_oracle(whole, x.detach(), y, loss)
        if name in CASCADES:
            # Where a row is in a batch plays no part: one call with all of them is the same.
            whole.zero_grad()
            together = whole(
                torch.cat([x for x, _ in everyones]),
                torch.cat([y for _, y in everyones]),
                smoothing=smoothing,
            )
            begin = sum(len(y) for _, y in everyones[:rank])
            close(loss.nll, together.nll[begin : begin + len(y)])


def against_oracle(whole: Any, x: Tensor, y: Tensor, loss: Any) -> None:
    """The training loss against sums over all V tokens, written without the heads' code."""
    tolerance = 50 * TOLERANCE[x.dtype]
    close = functools.partial(torch.testing.assert_close, atol=tolerance, rtol=tolerance, check_dtype=False)
    if isinstance(whole, CascadeHead):
        close(loss.nll, -cascade_oracle(whole, x).gather(1, y.unsqueeze(1)).squeeze(1))
        return
    table = whole.table.weight.detach().double()
    sampled = samples_of(whole, len(y)) if whole.variant == "shared" else []
    nll, smooth = dense_estimate(whole, x.double(), y, table, sampled)
    close(loss.nll, nll)
    if loss.smooth is not None:
        close(loss.smooth, smooth)


def evaluate(name: str, kind: str, dtype: torch.dtype, seed: int) -> None:
    """Exact scores and the best tokens against the whole head and the oracle."""
    book = some_book(HEADS[name][1], seed)
    whole, head = pair(name, book, dtype, seed)
    x, y = batches(book, counts_for(kind, seed), dtype, seed)[dist.get_rank()]
    close = functools.partial(
        torch.testing.assert_close, atol=50 * TOLERANCE[dtype], rtol=50 * TOLERANCE[dtype]
    )
    log_probs = head.log_probs(x).detach()
    oracle = (cascade_oracle if name in CASCADES else softmax_oracle)(whole, x).detach()
    close(log_probs, oracle.to(log_probs.dtype))
    close(log_probs.exp().sum(dim=1), log_probs.new_ones(len(x)))
    close(head.log_prob(x, y).detach(), log_probs.gather(1, y.unsqueeze(1)).squeeze(1))
    asked = torch.tensor([0, len(book) - 1])
    close(head.log_prob_of(x, asked).detach(), log_probs[:, asked])
    for k in {1, len(book) // 2 or 1, len(book)}:
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                scores, tokens = head.topk(x, k)
            close(scores, log_probs.topk(k, dim=1)[0])
            close(log_probs.gather(1, tokens), scores)
    found = head.candidates(x, 1, asked)
    close(found.given.detach(), log_probs[:, asked])


def log_probs_are_differentiable(name: str, seed: int) -> None:
    book = some_book(HEADS[name][1], seed)
    whole, head = pair(name, book, torch.float64, seed)
    everyones = batches(book, counts_for("some", seed), torch.float64, seed)
    for x, y in everyones:
        whole.log_probs(x).gather(1, y.unsqueeze(1)).sum().backward()
    x, y = everyones[dist.get_rank()]
    head.log_probs(x).gather(1, y.unsqueeze(1)).sum().backward()
    wanted = dict(whole.named_parameters())[head.whole_name].grad
    torch.testing.assert_close(head.sharded.weight.grad, head.own_rows(wanted))


def train(name: str, seed: int) -> None:
    """Some updates of Adam end with the same weights: gathered, saved whole, and loaded whole."""
    book = some_book(HEADS[name][1], seed)
    whole, head = pair(name, book, torch.float64, seed)
    optimisers = [torch.optim.Adam(each.parameters(), lr=0.05) for each in (whole, head)]
    for update in range(4):
        everyones = batches(book, counts_for("none on one rank", update), torch.float64, update)
        for each, optimiser in zip((whole, head), optimisers, strict=True):
            each.set_num_updates(update)
            optimiser.zero_grad()
        for x, y in everyones:
            combined(whole(x, y)).backward()
        combined(head(*everyones[dist.get_rank()])).backward()
        for key, parameter in head.named_parameters():
            if key != head.sharded_name:
                dist.all_reduce(parameter.grad)
        for optimiser in optimisers:
            optimiser.step()
    state = head.whole_state()
    assert (state is None) == (dist.get_rank() > 0)
    if state is not None:
        assert list(sorted(state)) == list(sorted(whole.state_dict()))
        for key, value in whole.state_dict().items():
            torch.testing.assert_close(state[key], value, msg=key)
        whole.load_state_dict(state)
    _, other = pair(name, book, torch.float64, seed + 1)
    other.load_state_dict(head.state_dict())
    torch.testing.assert_close(other.sharded.weight, head.sharded.weight)


def initial(name: str) -> None:
    """The same seed gives the same weights, and leaves the generator in the same state."""
    book, arguments = some_book(HEADS[name][1], 3), HEADS[name][0]
    for dim in (6, 16):
        kinds = (CascadeHead, ShardedCascadeHead) if name in CASCADES else (SamplingHead, ShardedSamplingHead)
        torch.manual_seed(7)
        whole = kinds[0](dim, book, **arguments)
        after = torch.rand(3)
        torch.manual_seed(7)
        head: Any = kinds[1](dim, book, shard=Shard.of(), **arguments)
        assert torch.equal(torch.rand(3), after)
        mine, theirs = head.state_dict(), whole.state_dict()
        table = theirs.pop(head.whole_name)
        assert torch.equal(mine.pop(head.sharded_name), head.own_rows(table))
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[key], value) for key, value in theirs.items())


def adopt(name: str) -> None:
    """A checkpoint's codebook is taken over before its rows are."""
    digits = HEADS[name][1]
    book, seed = some_book(digits, 5), 5
    moved = Codebook(book.lengths, book.slots.roll(1))
    whole, _ = pair(name, moved, torch.float64, seed)
    _, head = pair(name, book, torch.float64, seed + 1)
    try:
        head.load_state_dict(whole.state_dict())
    except MHEError as error:
        assert moved.fingerprint in str(error)
    else:
        raise AssertionError("another codebook was taken")
    head.adopt_codebook = True
    head.load_state_dict(whole.state_dict())
    x, y = batches(book, counts_for("some", 1), torch.float64, 1)[dist.get_rank()]
    torch.testing.assert_close(head.log_prob(x, y), whole.log_prob(x, y))


def autocast(name: str) -> None:
    book, seed = some_book(HEADS[name][1], 4), 4
    whole, head = pair(name, book, torch.float32, seed)
    x, y = batches(book, counts_for("some", 1), torch.float32, 1)[dist.get_rank()]
    losses, grads = [], []
    for each in (whole, head):
        each.set_num_updates(1)
        features = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            loss = each(features, y)
        combined(loss).backward()
        losses.append(loss)
        grads.append(features.grad)
    torch.testing.assert_close(losses[1].nll, losses[0].nll, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses[1].smooth, losses[0].smooth, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(grads[1], grads[0], atol=0.1, rtol=0.05)


def empty_rank(name: str) -> None:
    """All tokens are in the first groups: the last rank has rows, and no token."""
    length = 4
    groups = 3 * dist.get_world_size()
    book = Codebook((groups, length), torch.arange(2 * length))
    whole, head = pair(name, book, torch.float64, 1)
    x, y = batches(book, counts_for("some", 1), torch.float64, 1)[dist.get_rank()]
    for training in (True, False):
        losses, grads = [], []
        for each in (whole, head):
            each.train(training)
            each.set_num_updates(1)
            features = x.clone().requires_grad_()
            loss = each(features, y)
            combined(loss).backward()
            losses.append(torch.stack([loss.nll, loss.smooth]))
            grads.append(features.grad)
        torch.testing.assert_close(*losses)
        torch.testing.assert_close(*grads)
    torch.testing.assert_close(head.log_probs(x), whole.log_probs(x))
    torch.testing.assert_close(head.topk(x, 3), whole.topk(x, 3))
    assert head.sharded.weight.grad.isfinite().all()


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
    assert "multi-label" in told(lambda: head.multilabel_scores(torch.zeros(1, DIM), 1))
    assert "multi-label" in told(lambda: head.multilabel_loss(torch.zeros(1, DIM), [[1]], 1))


def all_cases() -> dict[str, Callable[[], None]]:
    cases: dict[str, Callable[[], None]] = {}
    kinds = ("some", "none on one rank", "none anywhere")
    for number, name in enumerate(HEADS):
        for at, kind in enumerate(kinds):
            for dtype in (torch.float64, torch.float32):
                for smoothing in (True, False) if dtype == torch.float64 else (True,):
                    text = f"{name}: loss, {kind}, {dtype}, {'smoothed' if smoothing else 'plain'}"
                    seed = 10 * number + at
                    cases[text] = functools.partial(compare, name, kind, dtype, smoothing, seed)
            cases[f"{name}: evaluation, {kind}"] = functools.partial(
                evaluate, name, kind, torch.float64, number + at
            )
        cases[f"{name}: loss in eval mode"] = functools.partial(
            compare, name, "some", torch.float64, True, number, False
        )
        cases[f"{name}: evaluation in float32"] = functools.partial(
            evaluate, name, "some", torch.float32, number
        )
        for more in range(4):
            cases[f"{name}: loss, another codebook, {more}"] = functools.partial(
                compare, name, "some", torch.float64, True, 100 + 10 * number + more
            )
        cases[f"{name}: log_probs' gradients"] = functools.partial(log_probs_are_differentiable, name, number)
        cases[f"{name}: updates"] = functools.partial(train, name, number)
        cases[f"{name}: initial weights"] = functools.partial(initial, name)
        cases[f"{name}: adopted codebook"] = functools.partial(adopt, name)
        cases[f"{name}: autocast"] = functools.partial(autocast, name)
    cases["cascade: a rank without tokens"] = functools.partial(empty_rank, "cascade")
    cases["sampling: a rank without tokens"] = functools.partial(empty_rank, "sampling")
    cases["cascade: bytes sent"] = functools.partial(counted, "cascade")
    cases["sampling: bytes sent"] = functools.partial(counted, "sampling")
    for case in (
        under_torchs_ddp,
        message_by_message,
        a_part_of_the_ranks,
        too_many_ranks,
        different_codebooks,
    ):
        cases[case.__name__] = case
    cases["different_widths"], cases["not_split"] = different_widths, not_split
    return cases


if __name__ == "__main__":
    from tests.heads.sharded.run import main

    main(all_cases())
