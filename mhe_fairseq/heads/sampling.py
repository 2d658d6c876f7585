"""MHS: the full soft-max, trained on the gold group and a few sampled groups (paper sec. 4, MHS)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import HeadLoss, wide
from mhe_fairseq.heads.softmax import SoftmaxHead

VARIANTS = ("shared", "own", "batch")

#: Rows of the N x V logits held at a time when the exact soft-max is asked for.
_EXACT_ROWS = 512


class SamplingHead(SoftmaxHead):
    """p(y) = softmax(W x)_y with W of V x d, its training restricted to a few groups of tokens.

    A group is the tokens with the same first digit; groups of holes alone do not count. In training the
    normaliser Z = sum_v exp(z_v) of a token is estimated from its gold group and G groups shared by the
    batch (variant "shared")::

        Z_hat = Z_gold + sum over sampled groups g other than the gold one of Z_g / pi_g

    where pi_g is the probability that g is in the sample, so E[Z_hat] = Z exactly, for every token and
    every x; ``nll`` is log Z_hat - z_target. Groups are drawn without replacement with unequal pi_g: in
    proportion to the share of the text they are expected to hold (fairseq's dictionaries are in order of
    frequency, so Zipf's law tells; mixed with their share of the tokens, in case it does not). A group
    that holds much of the text, as the first one in frequency order does, is in every sample (pi_g = 1).
    Measured on a small language model, 600 updates of 1,024 tokens, G = 8 of 96 groups, validation nats a
    token: dense 5.49, this 5.59 in frequency order, the same with equal pi_g 5.68; 5.71 and 5.86 with a
    codebook of clusters; "own" 6.86. Each update took a quarter of the dense one's time.

    In eval mode, and in ``log_prob``, ``log_probs`` and ``topk`` always, the head is the plain soft-max.
    The smoothing term in training is log Z_hat minus the mean logit of all V tokens, which is exact: it
    is x . mean_v W_v.

    The paper's own variants: "own" normalises over the gold group only, "batch" over the union of the
    batch's gold groups, both without correction and with the smoothing term over the same tokens.

    Cost: (G + 1) V / L_1 x d multiply-adds a token in training and N x (G + 1) V / L_1 logits; a gradient
    of V x d a step, each group's rows written once. Evaluation: V x d.

    Args:
        dim: d.
        codebook: tokens <-> digits, at least two digits.
        groups: G, groups drawn for a batch (variant "shared" only).
        tied: an ``nn.Embedding`` with a (V, d) weight to use as W.
        variant: "shared", "own" or "batch".

    Raises:
        MHEError: one digit, ``groups`` not in 1 .. number of groups - 1, an unknown variant, ``tied`` of
            another shape.
    """

    group_of_token: Tensor
    place_in_group: Tensor
    tokens_by_group: Tensor

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        groups: int = 8,
        tied: nn.Embedding | None = None,
        variant: str = "shared",
    ) -> None:
        if codebook.heads < 2:
            raise MHEError(
                "sampling needs groups of tokens, a codebook of two lengths such as 128,256; "
                f"got one length, {codebook.lengths[0]}"
            )
        if variant not in VARIANTS:
            raise MHEError(f"a sampling head's variant is one of {', '.join(VARIANTS)}; got {variant!r}")
        super().__init__(dim, codebook, tied=tied, chunk=_EXACT_ROWS)
        self.groups = groups
        self.variant = variant
        for name in ("group_of_token", "place_in_group", "tokens_by_group"):
            self.register_buffer(name, torch.empty(len(codebook), dtype=torch.long), persistent=False)
        self._codebook_changed()

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        """Loss of a batch: the estimate in training mode (stats ``sampled_nll`` and, with ``accuracy``,
        ``sampled_accuracy``: the target beats the tokens sampled), exact in eval mode."""
        if not self.training:
            return super().forward(features, target, smoothing, accuracy)
        device = features.device.type
        if torch.is_autocast_enabled(device):
            features = features.to(torch.get_autocast_dtype(device))
        # The products are in the features' type; autocast would make the sums after them half precision.
        with torch.autocast(device, enabled=False):
            log_z, gold, mean, best = _SampledScores.apply(
                features, self.table.weight, self._plan(target), smoothing, accuracy
            )
        nll = log_z - gold
        stats = {"sampled_nll": nll.detach()}
        if accuracy:
            stats["sampled_accuracy"] = gold.detach().ge(best).to(nll.dtype)
        return HeadLoss(nll, log_z - mean if smoothing else None, stats)

    def _plan(self, target: Tensor) -> _Plan:
        """Which tokens are scored for which rows of the batch."""
        gold = self.group_of_token[target]
        if self.variant == "shared":
            shared = sample_groups(self.inclusion, self._generator())
            log_weight = -self.inclusion[shared].log()
        elif self.variant == "batch":
            shared = gold.unique().cpu()
            log_weight = torch.zeros(len(shared), dtype=torch.float64)
        else:
            shared, log_weight = torch.zeros(0, dtype=torch.long), torch.zeros(0, dtype=torch.float64)
        starts = self._starts
        spans = [(starts[g], starts[g + 1]) for g in shared.tolist()]
        bounds = [0]
        for begin, end in spans:
            bounds.append(bounds[-1] + end - begin)
        pieces = [self.tokens_by_group[begin:end] for begin, end in spans]
        # Where each group's columns begin among the shared columns; -1: the group is not shared.
        first_column = torch.full((len(starts) - 1,), -1)
        first_column[shared] = torch.tensor(bounds[:-1], dtype=torch.long)
        first_column = first_column.to(target.device)[gold]
        at_home = first_column >= 0
        place = self.place_in_group[target]
        guests = (~at_home).nonzero().squeeze(-1)
        guests = guests[gold[guests].argsort(stable=True)]
        sizes = torch.bincount(gold[guests], minlength=len(starts) - 1).tolist() if len(guests) else []
        return _Plan(
            columns=torch.cat(pieces) if pieces else self.tokens_by_group[:0],
            bounds=bounds,
            log_weight=log_weight.tolist(),
            at_home=at_home.nonzero().squeeze(-1),
            home_column=first_column[at_home] + place[at_home],
            home_group=gold[at_home],
            shared=shared.tolist(),
            guests=guests,
            guest_place=place[guests],
            runs=_runs(sizes, self.tokens_by_group, starts),
            mean_of_all=self.variant == "shared",
        )

    def _codebook_changed(self) -> None:
        first, order = self._groups_of(self.codebook)
        sizes = torch.bincount(first)
        if self.variant == "shared" and not 1 <= self.groups < len(sizes):
            raise MHEError(
                f"a sampling head draws some of the {len(sizes)} groups of its codebook beside the gold one: "
                f"groups must be 1..{len(sizes) - 1}, got {self.groups}"
                if len(sizes) > 1
                else f"sampling needs at least two groups of tokens, the codebook has {len(sizes)}"
            )
        starts = torch.cat([torch.zeros(1, dtype=torch.long), sizes.cumsum(0)])
        place = torch.empty_like(order)
        place[order] = torch.arange(len(order)) - starts[first[order]]
        self.group_of_token.copy_(first)
        self.place_in_group.copy_(place)
        self.tokens_by_group.copy_(order)
        self._starts: list[int] = starts.tolist()
        # Not a buffer: `model.half()` would round it.
        self.inclusion = (
            inclusion_probabilities(expected_share(first, sizes), self.groups)
            if self.variant == "shared"
            else torch.zeros(0, dtype=torch.float64)
        )

    @staticmethod
    def _groups_of(codebook: Codebook) -> tuple[Tensor, Tensor]:
        """(V,) group of each token, numbered without the empty ones; (V,) tokens in order of slots."""
        order = codebook.slots.argsort()
        first = codebook.slots.div(codebook.size // codebook.lengths[0], rounding_mode="floor")
        return first.unique(return_inverse=True)[1], order

    def extra_repr(self) -> str:
        drawn = f", groups={self.groups} of {len(self._starts) - 1}" if self.variant == "shared" else ""
        return f"dim={self.dim}, vocab={self.vocab_size}, variant={self.variant}{drawn}"


def inclusion_probabilities(share: Tensor, count: int) -> Tensor:
    """Probabilities that add up to ``count``, in proportion to ``share`` and at most 1.

    Shape: (L,) float64, all positive, L > count -> (L,) float64.
    """
    inclusion = torch.zeros_like(share)
    free = torch.ones_like(share, dtype=torch.bool)
    while True:
        left = count - int((~free).sum())
        inclusion[free] = share[free] * (left / share[free].sum())
        over = free & (inclusion >= 1.0)
        if not bool(over.any()):
            return inclusion
        inclusion[over] = 1.0
        free &= ~over


def sample_groups(inclusion: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Different groups, each drawn with its inclusion probability: systematic sampling in random order.

    Shape: (L,) float64 that add up to a whole number G -> (G,) long, rising.
    """
    order = torch.randperm(len(inclusion), generator=generator)
    shift = torch.rand((), generator=generator, dtype=torch.float64)
    return systematic(inclusion, order, shift)


def systematic(inclusion: Tensor, order: Tensor, shift: Tensor) -> Tensor:
    """The groups at ``shift``, ``shift`` + 1, ... when groups lie end to end in ``order``, each as long as
    its probability; as none is longer than 1, none is met twice. Shape: (L,), (L,), () -> (G,)."""
    ends = inclusion[order].cumsum(0)
    count = round(float(ends[-1]))
    points = torch.arange(count, dtype=torch.float64) + shift
    met = torch.searchsorted(ends, points, right=True).clamp_(max=len(order) - 1)
    # `unique` sorts; it drops something only when rounding lets two points meet one group.
    return order[met].unique()


def expected_share(group_of_token: Tensor, sizes: Tensor) -> Tensor:
    """Share of the text a group is expected to hold: half by Zipf's law over the order of tokens, half by
    its number of tokens. Shape: (V,) long, (L,) long -> (L,) float64, adds up to 1."""
    vocab = len(group_of_token)
    zipf = 1.0 / (torch.arange(vocab, dtype=torch.float64) + 4.0)
    mass = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, group_of_token, zipf)
    return 0.5 * mass / zipf.sum() + 0.5 * sizes.double() / vocab


@dataclass(frozen=True)
class _Run:
    """Rows ``begin .. end`` of the guests have their gold in one group, of ``tokens`` (n,)."""

    begin: int
    end: int
    tokens: Tensor


def _runs(sizes: list[int], tokens_by_group: Tensor, starts: list[int]) -> list[_Run]:
    runs, begin = [], 0
    for group, size in enumerate(sizes):
        if size:
            tokens = tokens_by_group[starts[group] : starts[group + 1]]
            runs.append(_Run(begin, begin + size, tokens))
            begin += size
    return runs


@dataclass(frozen=True)
class _Plan:
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
    runs: list[_Run]
    mean_of_all: bool


class _SampledScores(torch.autograd.Function):
    """x (N, d), W (V, d), plan -> (N,) each: log Z_hat, gold logit, mean logit, best logit scored.

    Written by hand because ``W[tokens]`` under autograd makes a V x d gradient for every group; here one
    V x d gradient is made and each group's rows are written into it once.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, plan: _Plan, want_mean: bool, want_best: bool
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
        plan: _Plan = ctx.plan
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


def _own_logits(x: Tensor, weight: Tensor, plan: _Plan) -> Tensor:
    """(M, n) logits of the guests' gold groups, -inf beyond a smaller group's end."""
    width = max((len(run.tokens) for run in plan.runs), default=1)
    own = torch.full((len(plan.guests), width), -torch.inf, dtype=wide(x[:0]).dtype, device=x.device)
    visitors = x[plan.guests]
    for run in plan.runs:
        rows = weight.index_select(0, run.tokens).to(x.dtype)
        own[run.begin : run.end, : len(run.tokens)] = visitors[run.begin : run.end] @ rows.T
    return own


def _own_mean(own: Tensor, plan: _Plan) -> Tensor:
    parts = [own[run.begin : run.end, : len(run.tokens)].mean(dim=1) for run in plan.runs]
    return torch.cat(parts) if parts else own.new_zeros(0)


def _best(shared: Tensor, own: Tensor, plan: _Plan) -> Tensor:
    best = shared.amax(dim=1) if shared.size(1) else shared.new_full((len(shared),), -torch.inf)
    best[plan.guests] = torch.maximum(best[plan.guests], own.amax(dim=1))
    return best


def _correct(shared: Tensor, plan: _Plan, index: int, log_weight: float) -> None:
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
