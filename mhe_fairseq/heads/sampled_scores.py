"""Scores of a batch against its samples of groups, forward and backward, in one pass over few rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mhe_fairseq.heads.base import wide


@dataclass(frozen=True)
class Run:
    """Rows ``begin .. end`` of the guests have their gold in one group, of ``tokens`` (n,)."""

    begin: int
    end: int
    tokens: Tensor


def runs_of(sizes: list[int], tokens_by_group: Tensor, starts: list[int]) -> list[Run]:
    runs, begin = [], 0
    for group, size in enumerate(sizes):
        if size:
            tokens = tokens_by_group[starts[group] : starts[group + 1]]
            runs.append(Run(begin, begin + size, tokens))
            begin += size
    return runs


@dataclass(frozen=True)
class Block:
    """Rows of the batch that are scored on the same sample of groups.

    Attributes:
        begin, end: the rows.
        groups: the sample.
        columns: (C,) tokens of the groups, group after group.
        bounds: where each group's columns begin, and C.
        log_weight: of each group, added to its logits (but not for rows at home in it).
        at_home: (H,) rows, counted from ``begin``, whose gold group is in the sample.
        home_column: (H,) the target's column.
        home_group: (H,) the gold group.
    """

    begin: int
    end: int
    groups: list[int]
    columns: Tensor
    bounds: list[int]
    log_weight: list[float]
    at_home: Tensor
    home_column: Tensor
    home_group: Tensor


@dataclass(frozen=True)
class Plan:
    """Which tokens are scored for which of the N rows.

    A row is scored on the groups of every block it is in. Rows whose gold group is in none of these
    ("guests", M of them, sorted by gold group) are scored on their gold group too.

    Attributes:
        blocks: no group is twice in the blocks of one row.
        guests: (M,) rows.
        guest_place: (M,) the target's place in its group.
        runs: guests with the same gold group.
        mean_of_all: the mean logit is over all V tokens, not over the row's scored ones.
    """

    blocks: list[Block]
    guests: Tensor
    guest_place: Tensor
    runs: list[Run]
    mean_of_all: bool


class SampledScores(torch.autograd.Function):
    """x (N, d), W (V, d), plan -> (N,) each: log Z_hat, gold logit, mean logit, best logit scored.

    Written by hand because ``W[tokens]`` under autograd makes a V x d gradient for every group; here one
    V x d gradient is made and each block's groups are added to it.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, plan: Plan, want_mean: bool, want_best: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        own = _own_logits(x, weight, plan)
        gold = own.new_empty(x.size(0))
        gold[plan.guests] = own.gather(1, plan.guest_place.unsqueeze(1)).squeeze(1)
        log_z = torch.full_like(gold, -torch.inf)
        log_z[plan.guests] = own.logsumexp(dim=1)
        best = gold.new_empty(0)
        if want_best:
            best = torch.full_like(gold, -torch.inf)
            best[plan.guests] = own.amax(dim=1)
        mean, mean_weight = torch.zeros_like(gold), gold.new_zeros(0)
        if want_mean and plan.mean_of_all:
            mean_weight = weight.mean(dim=0, dtype=gold.dtype)
            mean = wide(x) @ mean_weight
        elif want_mean:
            mean[plan.guests] = _own_mean(own, plan)
        scores = []
        for block in plan.blocks:
            rows = slice(block.begin, block.end)
            logits = wide(x[rows] @ weight.index_select(0, block.columns).to(x.dtype).T)
            gold[rows].index_copy_(0, block.at_home, logits[block.at_home, block.home_column])
            if want_best:
                torch.maximum(best[rows], logits.amax(dim=1), out=best[rows])
            if want_mean and not plan.mean_of_all:
                home_mean = logits[block.at_home].sum(dim=1) / max(1, len(block.columns))
                mean[rows].index_copy_(0, block.at_home, home_mean)
            _correct(logits, block)
            torch.logaddexp(log_z[rows], logits.logsumexp(dim=1), out=log_z[rows])
            scores.append(logits)
        ctx.plan, ctx.want_mean = plan, want_mean
        ctx.save_for_backward(x, weight, own, log_z, mean_weight, *scores)
        ctx.mark_non_differentiable(best)
        return log_z, gold, mean, best

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_log_z: Tensor, g_gold: Tensor, g_mean: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, own, log_z, mean_weight, *scores = ctx.saved_tensors
        plan: Plan = ctx.plan
        if ctx.want_mean and plan.mean_of_all:
            row = ((g_mean @ wide(x)) / weight.size(0)).to(weight.dtype)
            grad_weight = row.expand_as(weight).clone()
            grad_x = torch.outer(g_mean, mean_weight)
        else:
            # Sums over groups are of fp32 for half precision too.
            grad_weight, grad_x = torch.zeros_like(weight), torch.zeros_like(x, dtype=log_z.dtype)
        # The mean over a row's own scored tokens hangs on each of them alike.
        g_each = g_mean if ctx.want_mean and not plan.mean_of_all else torch.zeros_like(g_mean)
        log_z, g_log_z, g_each = log_z.unsqueeze(1), g_log_z.unsqueeze(1), g_each.unsqueeze(1)
        for block, logits in zip(plan.blocks, scores, strict=True):
            rows = slice(block.begin, block.end)
            g_block = torch.zeros_like(g_each[rows])
            g_block[block.at_home] = g_each[rows][block.at_home] / max(1, len(block.columns))
            # Group by group: the derivatives of all logits at once would double the memory.
            for index, group in enumerate(block.groups):
                begin, end = block.bounds[index], block.bounds[index + 1]
                d = (logits[:, begin:end] - log_z[rows]).exp_().mul_(g_log_z[rows]).add_(g_block)
                here = block.home_group == group
                at_home = block.at_home[here]
                d[at_home, block.home_column[here] - begin] += g_gold[rows][at_home]
                _add(grad_x[rows], grad_weight, x[rows], weight, block.columns[begin:end], d)
        d_own = (own - log_z[plan.guests]).exp_().mul_(g_log_z[plan.guests])
        d_own.scatter_add_(1, plan.guest_place.unsqueeze(1), g_gold[plan.guests].unsqueeze(1))
        visitors, grad_visitors = x[plan.guests], grad_x.new_zeros(len(plan.guests), x.size(1))
        for run in plan.runs:
            rows = slice(run.begin, run.end)
            d = d_own[rows, : len(run.tokens)] + g_each[plan.guests[rows]] / len(run.tokens)
            _add(grad_visitors[rows], grad_weight, visitors[rows], weight, run.tokens, d)
        grad_x.index_add_(0, plan.guests, grad_visitors)
        return grad_x.to(x.dtype), grad_weight, None, None, None


def _own_logits(x: Tensor, weight: Tensor, plan: Plan) -> Tensor:
    """(M, n) logits of the guests' gold groups, -inf beyond a smaller group's end."""
    width = max((len(run.tokens) for run in plan.runs), default=1)
    own = torch.full((len(plan.guests), width), -torch.inf, dtype=wide(x[:0]).dtype, device=x.device)
    visitors = x[plan.guests]
    for run in plan.runs:
        rows = weight.index_select(0, run.tokens).to(x.dtype)
        own[run.begin : run.end, : len(run.tokens)] = visitors[run.begin : run.end] @ rows.T
    return own


def _own_mean(own: Tensor, plan: Plan) -> Tensor:
    parts = [own[run.begin : run.end, : len(run.tokens)].mean(dim=1) for run in plan.runs]
    return torch.cat(parts) if parts else own.new_zeros(0)


def _correct(logits: Tensor, block: Block) -> None:
    """Weight a sampled group's tokens, except for the rows for which it is the gold group: those have it
    in every sample."""
    for index, log_weight in enumerate(block.log_weight):
        if log_weight:
            added = logits.new_full((len(logits), 1), log_weight)
            added[block.at_home[block.home_group == block.groups[index]]] = 0.0
            logits[:, block.bounds[index] : block.bounds[index + 1]] += added


def _add(grad_x: Tensor, grad_weight: Tensor, x: Tensor, weight: Tensor, tokens: Tensor, d: Tensor) -> None:
    """Add what the derivatives d (m, n) of the logits of x (m, d) against ``tokens`` (n,) mean for x and for
    the tokens' rows."""
    d = d.to(x.dtype)
    grad_x += d @ weight.index_select(0, tokens).to(x.dtype)
    grad_weight.index_add_(0, tokens, (d.T @ x).to(grad_weight.dtype))
