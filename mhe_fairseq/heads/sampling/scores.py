"""Scores of a batch against samples of groups of tokens, forward and backward, a group at a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.margin import Margin, along_spheres_, inverse_lengths
from mhe_fairseq.heads.once import once
from mhe_fairseq.heads.sampling.plan import Chunk, GroupRows, Plan, add_product


class SampledScores(torch.autograd.Function):
    """Log Z_hat, gold logit, mean logit and best logit scored, of every row.

    ``log_weight``, one of each of the plan's R pairs, is added to the logits of the group. The mean logit is
    over all V tokens (``mean_of_all``) or over the row's scored ones.

    With ``margin``, ``x`` are its features, and logits are divided by the lengths of W's rows. The gold logit
    has the margin, also in log Z_hat; the best logit is as far from the gold one as it is without a margin.

    Shape: x (N, d), W (V, d), log_weight (R,) -> (N,) four times; (0,) for the best if it is not wanted.

    Written by hand because ``W[tokens]`` under autograd makes a V x d gradient for every group; here one
    V x d gradient is made and each group's product is added to it, one for all rows that meet the group: a
    product of the few rows that meet it as their gold group alone would do little but read and write the
    table. All else is done for a chunk of groups at once: many small operations wait for threads more than
    they compute. Each pair's soft-max over its group is kept in place of its logits; in the backward pass it
    is multiplied by one number a pair.
    """

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        groups: GroupRows,
        plan: Plan,
        log_weight: Tensor,
        want_mean: bool,
        want_best: bool,
        mean_of_all: bool,
        margin: Margin | None = None,
    ) -> tuple[Tensor, ...]:
        """What is asked for, and after it what the backward pass needs."""
        lowest, rows = wide(x[:0]), plan.rows
        best, peak = lowest.new_empty(len(rows)), lowest.new_empty(len(rows))
        of_scored = want_mean and not mean_of_all
        total = lowest.new_empty(len(rows) if of_scored else 0)
        home = lowest.new_empty(x.size(0))
        slope = lowest.new_empty(x.size(0) if margin else 0)
        # In the order of groups: those of one lie together.
        inverse = slope if margin is None else inverse_lengths(weight)[groups.tokens]
        highest = torch.empty_like(best if margin and want_best else best[:0])
        softs = []
        for chunk in plan.chunks:
            members = plan.features(x, chunk)
            logits = x.new_empty(len(members), chunk.size)
            tables = groups.read(weight, chunk, x.dtype)
            parts = zip(members.split(chunk.counts), tables, logits.split(chunk.counts), strict=True)
            for own, table, out in parts:
                torch.mm(own, table.T, out=out)
            logits = wide(logits)
            if margin is not None:
                groups.scale_(logits, inverse, chunk)
            torch.index_select(logits.view(-1), 0, plan.home_cells[chunk.targets], out=home[chunk.targets])
            if margin is not None:
                if want_best:
                    torch.amax(logits, dim=1, out=highest[chunk.pairs])
                bent = margin.bend(home[chunk.targets])
                slope[chunk.targets] = bent.slope
                logits.view(-1).index_copy_(0, plan.home_cells[chunk.targets], bent.value)
            torch.amax(logits, dim=1, out=best[chunk.pairs])
            if of_scored:
                torch.sum(logits, dim=1, out=total[chunk.pairs])
            softs.append(logits.softmax(dim=1))
            torch.amax(softs[-1], dim=1, out=peak[chunk.pairs])
        # A soft-max at its largest is exp(largest logit - log-sum-exp), and at least 1 / n.
        log_sums = best - peak.log_() + log_weight
        log_z = _logsumexp_by_row(log_sums, rows, x.size(0))
        plain = torch.empty_like(home).index_copy_(0, rows[plan.home], home)
        gold = plain if margin is None else margin.target(plain)
        mean, mean_weight = torch.zeros_like(gold), gold.new_zeros(0)
        if of_scored:
            mean = mean.index_add_(0, rows, total) / plan.scored
        elif want_mean:
            mean_weight = weight.mean(dim=0, dtype=gold.dtype)
            mean = wide(x) @ mean_weight
        share = (log_sums - log_z[rows]).exp_()
        best = _most_by_row(best if margin is None else highest, rows, x.size(0)) if want_best else best[:0]
        if margin is not None and want_best:
            best = gold + (best - plain)
        return log_z, gold, mean, best, share, mean_weight, slope, inverse, *softs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, weight, ctx.groups, plan, _, want_mean, _, mean_of_all, _ = inputs
        _, _, _, best, *kept = output
        ctx.chunks, ctx.want_mean, ctx.mean_of_all = plan.chunks, want_mean, mean_of_all
        ctx.mark_non_differentiable(best, *kept)
        # A gradient of zeros for each soft-max would be as large as all of them.
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, *plan.tensors, *kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        given = [wide(x[:0]).new_zeros(len(x)) if grad is None else grad for grad in grads[:3]]
        work = partial(_gradients, ctx.groups, ctx.chunks, ctx.want_mean, ctx.mean_of_all)
        return *once(work, *given, x, *saved), *[None] * 7


def _gradients(
    groups: GroupRows,
    chunks: list[Chunk],
    want_mean: bool,
    mean_of_all: bool,
    g_log_z: Tensor,
    g_gold: Tensor,
    g_mean: Tensor,
    x: Tensor,
    weight: Tensor,
    *kept: Tensor,
) -> tuple[Tensor, Tensor]:
    """Of x and of the weight. ``kept``: the plan's tensors, and what the forward pass gave."""
    plan, (share, mean_weight, slope, inverse, *softs) = Plan._make([*kept[:5], chunks]), kept[5:]
    g_each = None
    if want_mean and mean_of_all:
        row = ((g_mean @ wide(x)) / weight.size(0)).to(weight.dtype)
        grad_weight = row.expand_as(weight).clone(memory_format=torch.contiguous_format)
        grad_x = torch.outer(g_mean, mean_weight)
    else:
        # Sums over groups are of fp32 for half precision too.
        grad_weight, grad_x = torch.zeros_like(weight), torch.zeros_like(x, dtype=share.dtype)
    if want_mean and not mean_of_all:
        # The mean over a row's own scored tokens hangs on each of them alike.
        g_each = (g_mean / plan.scored)[plan.rows].unsqueeze(1)
    g_soft = (share * g_log_z[plan.rows]).unsqueeze(1)
    g_home = g_gold[plan.rows[plan.home]]
    for chunk, soft in zip(plan.chunks, softs, strict=True):
        d = soft * g_soft[chunk.pairs]
        d.view(-1).index_add_(0, plan.home_cells[chunk.targets], g_home[chunk.targets])
        if g_each is not None:
            d += g_each[chunk.pairs]
        if len(slope):
            cells, line = plan.home_cells[chunk.targets], d.view(-1)
            line.index_copy_(0, cells, line[cells] * slope[chunk.targets])
            groups.scale_(d, inverse, chunk)
        d = d.to(x.dtype)
        members = plan.features(x, chunk)
        groups.add_products(grad_weight, chunk, d, members)
        tables = groups.read(weight, chunk, x.dtype)
        if members is x:
            add_product(grad_x, d, tables[0])
        else:
            # Gathered features make way for their gradients.
            parts = zip(d.split(chunk.counts), tables, members.split(chunk.counts), strict=True)
            for own, table, out in parts:
                torch.mm(own, table, out=out)
            grad_x.index_add_(0, plan.rows[chunk.pairs], members.to(grad_x.dtype))
        del d, members, tables  # before the next ones are made
    if len(slope):
        along_spheres_(grad_weight, weight, torch.empty_like(inverse).index_copy_(0, groups.tokens, inverse))
    return grad_x.to(x.dtype), grad_weight


def _most_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """The largest value of every row. Shape: (R,), (R,) long -> (count,)."""
    return values.new_full((count,), -torch.inf).scatter_reduce_(0, rows, values, "amax")


def _logsumexp_by_row(values: Tensor, rows: Tensor, count: int) -> Tensor:
    """Shape: (R,), (R,) long, with every row -> (count,)."""
    most = _most_by_row(values, rows, count)
    sums = torch.zeros_like(most).index_add_(0, rows, (values - most[rows]).exp_())
    return most + sums.log_()
