"""Scores of a batch against its sample of groups, forward and backward, in one pass over few rows."""

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
class Plan:
    """Which tokens are scored for which of the N rows.

    Every row is scored on the shared columns. Rows whose gold group is not among the shared ones
    ("guests", M of them, sorted by gold group) are scored on their gold group too.

    Attributes:
        columns: (C,) tokens of the shared groups, group after group.
        bounds: where each shared group's columns begin, and C.
        log_weight: of each shared group, added to its logits (but not for rows at home in it).
        shared: the shared groups.
        at_home: (N - M,) rows whose gold group is shared.
        home_column: (N - M,) the target's column.
        home_group: (N - M,) the gold group.
        guests: (M,) the other rows.
        guest_place: (M,) the target's place in its group.
        runs: guests with the same gold group.
        mean_of_all: the mean logit is over all V tokens, not over the row's scored ones.
    """

    columns: Tensor
    bounds: list[int]
    log_weight: list[float]
    shared: list[int]
    at_home: Tensor
    home_column: Tensor
    home_group: Tensor
    guests: Tensor
    guest_place: Tensor
    runs: list[Run]
    mean_of_all: bool


class SampledScores(torch.autograd.Function):
    """x (N, d), W (V, d), plan -> (N,) each: log Z_hat, gold logit, mean logit, best logit scored.

    Written by hand because ``W[tokens]`` under autograd makes a V x d gradient for every group; here one
    V x d gradient is made and each group's rows are written into it once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, plan: Plan, want_mean: bool, want_best: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        n = x.size(0)
        shared = wide(x @ weight.index_select(0, plan.columns).to(x.dtype).T)
        own = _own_logits(x, weight, plan)
        gold = shared.new_empty(n)
        gold[plan.at_home] = shared[plan.at_home, plan.home_column]
        gold[plan.guests] = own.gather(1, plan.guest_place.unsqueeze(1)).squeeze(1)
        best = _best(shared, own, plan) if want_best else gold.new_empty(0)
        mean_weight = shared.new_zeros(0)
        if not want_mean:
            mean = torch.zeros_like(gold)
        elif plan.mean_of_all:
            mean_weight = weight.mean(dim=0, dtype=gold.dtype)
            mean = wide(x) @ mean_weight
        else:
            mean = torch.empty_like(gold)
            mean[plan.at_home] = shared[plan.at_home].sum(dim=1) / max(1, len(plan.columns))
            mean[plan.guests] = _own_mean(own, plan)
        for index, log_weight in enumerate(plan.log_weight):
            if log_weight:
                _correct(shared, plan, index, log_weight)
        log_z = shared.logsumexp(dim=1) if shared.size(1) else torch.full_like(gold, -torch.inf)
        log_z[plan.guests] = torch.logaddexp(log_z[plan.guests], own.logsumexp(dim=1))
        ctx.plan, ctx.want_mean = plan, want_mean
        ctx.save_for_backward(x, weight, shared, own, log_z, mean_weight)
        ctx.mark_non_differentiable(best)
        return log_z, gold, mean, best

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, g_log_z: Tensor, g_gold: Tensor, g_mean: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None]:
        x, weight, shared, own, log_z, mean_weight = ctx.saved_tensors
        plan: Plan = ctx.plan
        row = None
        if ctx.want_mean and plan.mean_of_all:
            row = ((g_mean @ wide(x)) / weight.size(0)).to(weight.dtype)
            grad_weight = row.expand_as(weight).clone()
            grad_x = torch.outer(g_mean, mean_weight)
        else:
            # Sums over groups are of fp32 for half precision too.
            grad_weight, grad_x = torch.zeros_like(weight), torch.zeros_like(x, dtype=log_z.dtype)
        # The mean over a row's own scored tokens hangs on each of them alike.
        g_each = g_mean if ctx.want_mean and not plan.mean_of_all else torch.zeros_like(g_mean)
        # Group by group: the derivatives of all shared logits at once would double the memory.
        log_z, g_log_z, g_each = log_z.unsqueeze(1), g_log_z.unsqueeze(1), g_each.unsqueeze(1)
        g_shared = torch.zeros_like(g_each)
        g_shared[plan.at_home] = g_each[plan.at_home] / max(1, len(plan.columns))
        for index, group in enumerate(plan.shared):
            begin, end = plan.bounds[index], plan.bounds[index + 1]
            d = (shared[:, begin:end] - log_z).exp_().mul_(g_log_z).add_(g_shared)
            here = plan.home_group == group
            at_home = plan.at_home[here]
            d[at_home, plan.home_column[here] - begin] += g_gold[at_home]
            d = d.to(x.dtype)
            tokens = plan.columns[begin:end]
            grad_x += d @ weight.index_select(0, tokens).to(x.dtype)
            _write(grad_weight, tokens, d, x, row)
        d_own = (own - log_z[plan.guests]).exp_().mul_(g_log_z[plan.guests])
        d_own.scatter_add_(1, plan.guest_place.unsqueeze(1), g_gold[plan.guests].unsqueeze(1))
        visitors, grad_visitors = x[plan.guests], grad_x.new_empty(len(plan.guests), x.size(1))
        for run in plan.runs:
            d_run = d_own[run.begin : run.end, : len(run.tokens)]
            d_run = (d_run + g_each[plan.guests[run.begin : run.end]] / len(run.tokens)).to(x.dtype)
            grad_visitors[run.begin : run.end] = d_run @ weight.index_select(0, run.tokens).to(x.dtype)
            _write(grad_weight, run.tokens, d_run, visitors[run.begin : run.end], row)
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


def _best(shared: Tensor, own: Tensor, plan: Plan) -> Tensor:
    best = shared.amax(dim=1) if shared.size(1) else shared.new_full((len(shared),), -torch.inf)
    best[plan.guests] = torch.maximum(best[plan.guests], own.amax(dim=1))
    return best


def _correct(shared: Tensor, plan: Plan, index: int, log_weight: float) -> None:
    """Weight a sampled group's tokens, except for the rows for which it is the gold group: those have it
    in every sample."""
    block = shared[:, plan.bounds[index] : plan.bounds[index + 1]]
    added = shared.new_full((len(shared), 1), log_weight)
    added[plan.at_home[plan.home_group == plan.shared[index]]] = 0.0
    block += added


def _write(grad: Tensor, tokens: Tensor, d_logits: Tensor, x: Tensor, row: Tensor | None) -> None:
    """Write the gradient of the rows of ``tokens`` (n,): d_logits (m, n)^T x (m, d), plus ``row`` (d,)."""
    block = (d_logits.T @ x).to(grad.dtype)
    grad.index_copy_(0, tokens, block if row is None else block.add_(row))
