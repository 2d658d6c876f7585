"""Cases: losses, gradients, scores and updates of a split head are those of the whole one."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads import CascadeHead, SamplingHead
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from tests.heads.oracle import TOLERANCE, cascade_oracle, softmax_oracle
from tests.heads.sampling.cases import dense_estimate, samples_of
from tests.heads.sharded.pairs import (
    CASCADES,
    HEADS,
    SAMPLINGS,
    batches,
    combined,
    counts_for,
    pair,
    some_book,
)


def compare(
    name: str,
    kind: str,
    dtype: torch.dtype,
    smoothing: bool,
    seed: int,
    training: bool = True,
    exact: bool = False,
) -> None:
    """Loss and every gradient against the whole head, which gets the ranks' batches one after the other."""
    book = some_book(HEADS[name][1], seed)
    whole, head = pair(name, book, dtype, seed)
    everyones = batches(book, counts_for(kind, seed), dtype, seed)
    rank = dist.get_rank()
    for each in (whole, head):
        each.train(training)
        each.set_num_updates(seed)
        if exact:
            # Fewer rows than the larger batches have.
            each.exact, each.chunk = True, 3
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
    if training and not exact:
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
    # With a margin one has the target's score from its product in bf16, the other does it anew in fp32.
    near = 1e-4 if getattr(whole, "margin", None) is None else 2e-3
    torch.testing.assert_close(losses[1].smooth, losses[0].smooth, atol=near, rtol=near)
    torch.testing.assert_close(grads[1], grads[0], atol=0.1, rtol=0.05)


def empty_rank(name: str) -> None:
    """All tokens are in the first groups: the last rank has rows, and no token."""
    length = 4
    groups = 3 * dist.get_world_size()
    book = Codebook((groups, length), torch.arange(2 * length))
    whole, head = pair(name, book, torch.float64, 1)
    x, y = batches(book, counts_for("some", 1), torch.float64, 1)[dist.get_rank()]
    for training, exact in ((True, False), (False, False), (True, True)):
        if exact and name not in SAMPLINGS:
            continue
        losses, grads = [], []
        for each in (whole, head):
            each.train(training)
            if exact:
                each.exact, each.chunk = True, 1
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
