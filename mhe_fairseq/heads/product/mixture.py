"""Scores of a mixture of products: sums, dense grid and exact top-k, without V x d work."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mhe_fairseq.heads.product.lattice import Edge, Lattice

#: Sums of component probabilities below this are recomputed in the log domain.
_TINY = 1e-30


@dataclass
class MixtureScores:
    """Unnormalised digit scores of K components.

    Attributes:
        digits: H tensors (N, K, L_h), logits, fp32 or float64.
        log_gate: (N, K), log pi_k.
    """

    digits: list[Tensor]
    log_gate: Tensor

    @cached_property
    def digit_mass(self) -> list[Tensor]:
        """H tensors (N, K): log-sum-exp of each digit's logits."""
        return [score.logsumexp(dim=-1) for score in self.digits]

    @cached_property
    def prior(self) -> Tensor:
        """(N, K): log pi_k - sum_h digit_mass, so that log p_k(y) pi_k = prior + sum_h digits[y_h]."""
        return self.log_gate - torch.stack(self.digit_mass, dim=0).sum(dim=0)

    def log_digits(self) -> list[Tensor]:
        """H tensors (N, K, L_h): log p_kh."""
        return [s - m.unsqueeze(-1) for s, m in zip(self.digits, self.digit_mass, strict=True)]

    def log_mass(self, lattice: Lattice) -> Tensor:
        """log Z, (N,): the mixture's probability of the slots that are tokens; 0 without holes."""
        if lattice.full:
            return self.log_gate.new_zeros(self.log_gate.size(0))
        return (self.prior + lattice.log_mass(self.digits, self.digit_mass)).logsumexp(dim=-1)

    def log_joint(self, digits: Tensor) -> Tensor:
        """log sum_k pi_k prod_h p_kh of given digits. Shape: (S, H), shared by the batch, or (N, S, H) ->
        (N, S)."""
        total = self.prior.unsqueeze(-1)
        for h, score in enumerate(self.digits):
            if digits.dim() == 2:
                total = total + score.index_select(-1, digits[:, h])
            else:
                total = total + score.gather(-1, digits[:, None, :, h].expand(-1, score.size(1), -1))
        return total.logsumexp(dim=1)

    def marginal_argmax(self) -> list[Tensor]:
        """H tensors (N,): the likeliest value of each digit by itself."""
        best = []
        for score, mass in zip(self.digits, self.digit_mass, strict=True):
            if score.size(1) == 1:
                best.append(score.squeeze(1).argmax(dim=-1))
                continue
            log_p = score + (self.log_gate - mass).unsqueeze(-1)
            best.append(log_p.logsumexp(dim=1).argmax(dim=-1))
        return best

    def rest(self) -> Tensor:
        """Scores of all digits but the first, on their flattened grid: (N, K, L_2 ... L_H)."""
        total = self.digits[0].new_zeros(*self.log_gate.shape, 1)
        for score in self.digits[1:]:
            total = (total.unsqueeze(-1) + score.unsqueeze(-2)).flatten(2)
        return total

    def grid(self) -> Tensor:
        """log sum_k pi_k prod_h p_kh of every slot, not yet divided by Z. Shape: (N, prod(L_h))."""
        first = self.digits[0] + self.prior.unsqueeze(-1)
        if first.size(1) == 1:
            return (first.squeeze(1).unsqueeze(-1) + self.rest()).flatten(1)
        return _log_matmul(first, self.rest()).flatten(1)

    def topk(self, lattice: Lattice, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens of a mixture: scores (N, k), not divided by Z, and slots (N, k).

        Rows (values of the first digit) are opened in the order of an upper bound, sum_k of the row's
        weight times the component's best rest; when the k-th best found reaches the best bound of the
        rows still closed, no closed row can matter. Exact; the work is a few rows for most tokens.
        """
        first = self.digits[0] + self.prior.unsqueeze(-1)
        rest = self.rest()
        keep, bound = self._row_bounds(first, rest, lattice)
        n, rows, width = first.size(0), first.size(-1), rest.size(-1)
        per_row = min(k, width)
        opened = min(rows, max(8, k))
        best = first.new_empty(n, k)
        slots = torch.zeros(n, k, dtype=torch.long, device=first.device)
        todo = torch.arange(n, device=first.device)
        order = bound.argsort(dim=-1, descending=True)
        while todo.numel():
            picked = order[todo, :opened]
            index = picked.unsqueeze(1).expand(-1, first.size(1), -1)
            table = _log_matmul(first[todo].gather(-1, index), rest[todo])
            table = table.masked_fill(~keep[picked], -torch.inf)
            value, column = table.topk(per_row, dim=-1)
            slot = picked.unsqueeze(-1) * width + column
            count = min(k, opened * per_row)
            value, at = value.flatten(1).topk(count, dim=-1)
            done = torch.ones_like(todo, dtype=torch.bool)
            if opened < rows:
                done = (
                    torch.zeros_like(done) if count < k else value[:, -1] >= _next(bound, order, todo, opened)
                )
            ready = todo[done]
            best[ready] = value[done]
            slots[ready] = slot.flatten(1).gather(-1, at)[done]
            todo = todo[~done]
            opened = min(rows, 4 * opened)
        return best, slots

    def _row_bounds(self, first: Tensor, rest: Tensor, lattice: Lattice) -> tuple[Tensor, Tensor]:
        """Which (row, rest) are tokens, (L_1, R) bool, and the upper bound of every row, (N, L_1)."""
        if lattice.full:
            top = rest.amax(dim=-1, keepdim=True)
            everything = torch.ones(first.size(-1), rest.size(-1), dtype=torch.bool, device=first.device)
            return everything, (first + top).logsumexp(dim=1)
        keep = torch.zeros(first.size(-1), rest.size(-1), dtype=torch.bool)
        bound = torch.full_like(first[:, 0], -torch.inf)
        for edge in lattice.levels[0][0]:
            mask = _pattern(lattice, edge)
            rows = torch.arange(first.size(-1)) if edge.digits is None else edge.digits
            keep[rows] = mask
            top = rest[..., mask.to(rest.device)].amax(dim=-1, keepdim=True)
            bound[:, rows.to(bound.device)] = (edge.columns.read(first) + top).logsumexp(dim=1)
        return keep.to(first.device), bound


def _next(bound: Tensor, order: Tensor, todo: Tensor, opened: int) -> Tensor:
    """The best bound of the rows not yet opened, with room for rounding."""
    upper = bound[todo, order[todo, opened]]
    return upper + 1e-5 * upper.abs().clamp(min=1.0)


def _pattern(lattice: Lattice, edge: Edge, level: int = 1) -> Tensor:
    """Which completions of an edge's prefixes are tokens. Shape: (L_{level+1} ... L_H,) bool."""
    if level == len(lattice.lengths):
        return torch.ones(1, dtype=torch.bool)
    width = 1
    for length in lattice.lengths[level + 1 :]:
        width *= length
    pattern = torch.zeros(lattice.lengths[level], width, dtype=torch.bool)
    for inner in lattice.levels[level][edge.child]:
        digits = slice(None) if inner.digits is None else inner.digits
        pattern[digits] = _pattern(lattice, inner, level + 1)
    return pattern.flatten()


def _log_matmul(first: Tensor, second: Tensor) -> Tensor:
    """log sum_k exp(first_ki + second_kj). Shape: (N, K, I), (N, K, J) -> (N, I, J).

    A matrix product in the linear domain, scaled by each row's and each column's best component; where
    all scaled terms still vanish, the sum is taken again in the log domain.
    """
    top_first, top_second = first.amax(dim=1), second.amax(dim=1)
    a = (first - top_first.unsqueeze(1)).exp_()
    b = (second - top_second.unsqueeze(1)).exp_()
    with torch.autocast(a.device.type, enabled=False):  # probabilities are never of half precision
        product = a.transpose(1, 2) @ b
    vanished = (product < _TINY).nonzero(as_tuple=True)
    result = product.clamp_min(_TINY).log_().add_(top_first.unsqueeze(-1)).add_(top_second.unsqueeze(1))
    if vanished[0].numel():
        n, i, j = vanished
        result[n, i, j] = (first[n, :, i] + second[n, :, j]).logsumexp(dim=-1)
    return result
