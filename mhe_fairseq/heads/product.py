"""MHP: a distribution over tokens that is a product of small distributions over digits (paper sec. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook, unravel
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import Candidates, HeadLoss, OutputHead, wide
from mhe_fairseq.heads.lattice import Lattice
from mhe_fairseq.heads.mixture import MixtureScores

#: Tokens drawn for the smoothing term of a mixture.
SMOOTHING_TOKENS = 64


class ProductHead(OutputHead):
    """p(y) = sum_k pi_k(x) prod_h p_kh(y_h | x) / Z, K components of H digits.

    With one component this is the paper's MHP: one ``Linear(d, sum L_h)``, a soft-max for each digit. With
    more, the digits are no longer independent given the features. Z, the probability of the slots that
    are tokens, is computed exactly from the digits (``Lattice.log_mass``).

    Cost: K sum(L_h) d multiply-adds a token, whatever V.

    Args:
        dim: d.
        codebook: tokens <-> digits.
        mixtures: K.

    Raises:
        MHEError: ``mixtures`` below 1.
    """

    finds_best = True
    digit_counts: Tensor

    def __init__(self, dim: int, codebook: Codebook, mixtures: int = 1) -> None:
        super().__init__(dim, codebook)
        if mixtures < 1:
            raise MHEError(f"a product head needs at least 1 mixture component, got mixtures={mixtures}")
        self.mixtures = mixtures
        rows = mixtures * sum(codebook.lengths)
        self.weight = nn.Parameter(torch.empty(rows, dim))
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.weight, mean=0.0, std=dim**-0.5)
        self.gate: nn.Linear | None = None
        if mixtures > 1:
            self.gate = nn.Linear(dim, mixtures)
            nn.init.normal_(self.gate.weight, mean=0.0, std=dim**-0.5)
            nn.init.zeros_(self.gate.bias)
        # Whole numbers: a float buffer would be rounded when the model is cast to half precision.
        counts = torch.zeros(sum(codebook.lengths), dtype=torch.long)
        self.register_buffer("digit_counts", counts, persistent=False)
        self._codebook_changed()

    @property
    def heads(self) -> int:
        """H."""
        return len(self.codebook.lengths)

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        scores = self._scores(features)
        digits = self._digits(target)
        per_digit = [
            -F.cross_entropy(
                score.flatten(0, 1), digits[:, h].repeat_interleave(self.mixtures), reduction="none"
            )
            for h, score in enumerate(scores.digits)
        ]
        # (N, K, H): log p_kh(y_h)
        picked = torch.stack([p.view(-1, self.mixtures) for p in per_digit], dim=-1)
        log_mass = scores.log_mass(self.lattice)
        nll = log_mass - (scores.log_gate + picked.sum(dim=-1)).logsumexp(dim=-1)
        smooth = self._smooth(scores, log_mass) if smoothing else None
        return HeadLoss(nll, smooth, self._stats(scores, picked, digits, target, accuracy))

    def log_probs(self, features: Tensor) -> Tensor:
        scores = self._scores(features)
        grid = scores.grid()
        log_probs = grid.index_select(-1, self.codebook_slots)
        return log_probs.sub_(scores.log_mass(self.lattice).unsqueeze(-1))

    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._check_k(k)
        scores = self._scores(features)
        best, tokens = self._best(scores, k)
        return best - scores.log_mass(self.lattice).unsqueeze(-1), tokens

    def log_prob_of(self, features: Tensor, tokens: Tensor) -> Tensor:
        scores = self._scores(features)
        return scores.log_joint(self._digits(tokens)) - scores.log_mass(self.lattice).unsqueeze(-1)

    def candidates(self, features: Tensor, k: int, tokens: Tensor) -> Candidates:
        self._check_k(k)
        scores = self._scores(features)
        log_mass = scores.log_mass(self.lattice).unsqueeze(-1)
        best, found = self._best(scores, k)
        return Candidates(best - log_mass, found, scores.log_joint(self._digits(tokens)) - log_mass)

    def _best(self, scores: MixtureScores, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens: (N, k) scores, not divided by Z, and (N, k) tokens."""
        if self.mixtures == 1:
            best, slots = self.lattice.topk([p.squeeze(1) for p in scores.log_digits()], k)
        else:
            best, slots = scores.topk(self.lattice, k)
        return best, self._token_of_slot.to(slots.device)[slots]

    def _scores(self, features: Tensor) -> MixtureScores:
        logits = wide(F.linear(features, self.weight, self.bias))
        n, k = features.size(0), self.mixtures
        digits = [
            part.reshape(n, k, length)
            for part, length in zip(
                logits.split([k * length for length in self.codebook.lengths], dim=-1),
                self.codebook.lengths,
                strict=True,
            )
        ]
        if self.gate is None:
            log_gate = logits.new_zeros(n, 1)
        else:
            log_gate = F.log_softmax(wide(self.gate(features)), dim=-1)
        return MixtureScores(digits, log_gate)

    def _smooth(self, scores: MixtureScores, log_mass: Tensor) -> Tensor:
        """mean_v -log p(v), (N,): a weighted sum over the digits when K = 1, which is exact; else an
        unbiased estimate from uniform tokens shared by the batch."""
        if self.mixtures == 1:
            means = (self.digit_counts.to(log_mass.dtype) / self.vocab_size).split(
                list(self.codebook.lengths)
            )
            total = log_mass
            for score, mean in zip(scores.digits, means, strict=True):
                score = score.squeeze(1)
                # No matrix product: autocast would make it half precision.
                total = total + score.logsumexp(dim=-1) - (score * mean).sum(dim=-1)
            return total
        count = min(SMOOTHING_TOKENS, self.vocab_size)
        digits = self._digits(self._sample_tokens(count, log_mass.device))
        return log_mass - scores.log_joint(digits).mean(dim=-1)

    @torch.no_grad()
    def _stats(
        self, scores: MixtureScores, picked: Tensor, digits: Tensor, target: Tensor, accuracy: bool
    ) -> dict[str, Tensor]:
        """Loss of each digit under its marginal, and with ``accuracy`` whether digits and token are right."""
        stats: dict[str, Tensor] = {}
        marginal = (scores.log_gate.unsqueeze(-1) + picked).logsumexp(dim=1)
        for h in range(self.heads):
            stats[f"digit_{h + 1}_nll"] = -marginal[:, h]
        if accuracy:
            for h, best in enumerate(scores.marginal_argmax()):
                stats[f"digit_{h + 1}_accuracy"] = best.eq(digits[:, h]).to(picked.dtype)
            tokens = self._best(scores, 1)[1].squeeze(-1)
            stats["accuracy"] = tokens.eq(target).to(picked.dtype)
        return stats

    def _digits(self, tokens: Tensor) -> Tensor:
        return unravel(self.codebook_slots[tokens], self.codebook.lengths)

    def _codebook_changed(self) -> None:
        self.lattice = Lattice(self.codebook)
        self._token_of_slot = self.codebook.token_of_slot
        digits = self.codebook.digits(torch.arange(self.vocab_size))
        counts = [
            torch.bincount(digits[:, h], minlength=length) for h, length in enumerate(self.codebook.lengths)
        ]
        self.digit_counts.copy_(torch.cat(counts))

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.codebook.lengths))
        return f"dim={self.dim}, lengths={shape}, mixtures={self.mixtures}, vocab={self.vocab_size}"
