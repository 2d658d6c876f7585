"""MHP: a distribution over tokens that is a product of small distributions over digits (paper sec. 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook, unravel
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import Candidates, HeadLoss, OutputHead, wide
from mhe_fairseq.heads.kernels.product_tables import Tables
from mhe_fairseq.heads.product import search_kernels as product_search_kernels
from mhe_fairseq.heads.product.column_sums import column_sums, digit_views
from mhe_fairseq.heads.product.kernels import SMOOTHING_TOKENS, kernel_loss
from mhe_fairseq.heads.product.lattice import Lattice
from mhe_fairseq.heads.product.mixture import MixtureScores
from mhe_fairseq.heads.product.reading import ProductReading
from mhe_fairseq.heads.rows.input_rows import digit_rows
from mhe_fairseq.heads.rows.single_rows import SingleRows
from mhe_fairseq.heads.wide_product import wide_linear


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
        tied: an ``nn.Embedding`` with a (V, d) weight, added to the rows of first digits that have one token;
            what these have beside it begins at zero. None: rows of the head's own only.
        rows_in_input: ``input_rows`` gives the rows of a token's digits, those of several tokens.

    Raises:
        MHEError: ``mixtures`` below 1, or above 1 with ``rows_in_input``; ``tied`` of another shape.
    """

    finds_best = True
    digit_counts: Tensor

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        mixtures: int = 1,
        tied: nn.Embedding | None = None,
        rows_in_input: bool = False,
    ) -> None:
        super().__init__(dim, codebook)
        if mixtures < 1:
            raise MHEError(f"a product head needs at least 1 mixture component, got mixtures={mixtures}")
        if mixtures > 1 and rows_in_input:
            raise MHEError(
                f"each of {mixtures} mixture components has rows of its own; only the rows of a product of "
                "one component can be part of the input embeddings"
            )
        self.mixtures = mixtures
        rows = mixtures * sum(codebook.lengths)
        self.weight = nn.Parameter(torch.empty(rows, dim))
        self.bias = nn.Parameter(torch.zeros(rows))
        nn.init.normal_(self.weight, mean=0.0, std=dim**-0.5)
        self.singles: SingleRows | None = None
        if tied is not None:
            self.singles = SingleRows(tied, codebook, dim, copies=mixtures)
            self.singles.clear(self.weight)
        if rows_in_input:
            self._give_input_rows()
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
        served = kernel_loss(self, features, target, smoothing, accuracy)
        if served is not None:
            return served
        logits, log_gate = self._logits(features)
        digits = self._digits(target)
        drawn = self._drawn_digits() if smoothing and self.mixtures > 1 else digits[:0]
        lattice = self.lattice
        sums, own, shared = column_sums(logits, lattice.lengths, lattice.sets, digits, drawn)
        digit_mass = sums[: self.heads]
        prior = log_gate - digit_mass.sum(dim=0)
        nll = -(prior + own.sum(dim=0)).logsumexp(dim=-1)
        log_mass = None
        if not lattice.full:
            log_mass = (prior + lattice.log_mass_of(sums.unbind())).logsumexp(dim=-1)
            nll = nll + log_mass
        smooth = None
        if smoothing:
            smooth = -self._mean_log_joint(logits, prior, shared)
            smooth = smooth if log_mass is None else smooth + log_mass
        stats = self._digit_nll(log_gate, own - digit_mass)
        if accuracy:
            stats |= self._accuracy(logits, log_gate, target)
        return HeadLoss(nll, smooth, stats)

    def log_probs(self, features: Tensor) -> Tensor:
        scores = self._scores(features)
        grid = scores.grid()
        log_probs = grid.index_select(-1, self.codebook_slots)
        return log_probs.sub_(scores.log_mass(self.lattice).unsqueeze(-1))

    def read(self, features: Tensor) -> ProductReading:
        return ProductReading(self, features)

    def why_wide(self, beam: int) -> str | None:
        # One component's best tokens are found in as many steps for any weights, a mixture's are not.
        if self.mixtures == 1 or self.weight.device.type == "cpu":
            return super().why_wide(beam)
        if product_search_kernels.serves(self, self.weight.detach(), 2 * beam + 4):
            return None
        return f"on {self.weight.device.type} kernels search a mixture, and they cannot be used here"

    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        self._check_k(k)
        found = self.read(features).best_by_kernels(k, self.codebook_slots[:0])
        if found is not None:
            return found.scores, found.tokens
        scores = self._scores(features)
        best, tokens = self._best(scores, k)
        return best - scores.log_mass(self.lattice).unsqueeze(-1), tokens

    def log_prob_of(self, features: Tensor, tokens: Tensor) -> Tensor:
        scores = self._scores(features)
        return scores.log_joint(self._digits(tokens)) - scores.log_mass(self.lattice).unsqueeze(-1)

    def candidates(self, features: Tensor, k: int, tokens: Tensor) -> Candidates:
        self._check_k(k)
        by_kernels = self.read(features).best_by_kernels(k, tokens)
        if by_kernels is not None:
            return by_kernels
        scores = self._scores(features)
        log_mass = scores.log_mass(self.lattice).unsqueeze(-1)
        best, found = self._best(scores, k)
        return Candidates(best - log_mass, found, scores.log_joint(self._digits(tokens)) - log_mass)

    def mixture_logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of all digits and the gate's log-probabilities, as ``log_probs`` reads them.

        Shape: (N, d) -> (N, K * sum(L_h)), of the first digit of all components, of the second, ..., and
        (N, K); fp32 or float64.
        """
        return self._logits(features)

    def _best(self, scores: MixtureScores, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens: (N, k) scores, not divided by Z, and (N, k) tokens."""
        if self.mixtures == 1:
            best, slots = self.lattice.topk([p.squeeze(1) for p in scores.log_digits()], k)
        else:
            best, slots = scores.topk(self.lattice, k)
        return best, self.token_of_slot(slots)

    def _logits(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(N, K * sum(L_h)) logits, fp32 or float64, and (N, K) log pi_k."""
        logits = wide_linear(features, self.rows(), self.bias)
        return logits, self._log_gate(logits, None if self.gate is None else self.gate(features))

    @staticmethod
    def _log_gate(logits: Tensor, gate: Tensor | None) -> Tensor:
        """log pi_k of the gate's logits, and of none 0: (N, K), in the type of the digits' logits."""
        if gate is None:
            return logits.new_zeros(logits.size(0), 1)
        return F.log_softmax(wide(gate), dim=-1)

    def rows(self) -> Tensor:
        """Output rows, (K * sum(L_h), d): of the first digit of all components, of the second, ..."""
        return self.weight if self.singles is None else self.singles(self.weight)

    def input_rows(self, tokens: Tensor) -> Tensor | None:
        if not self.has_input_rows:
            return None
        lengths = list(self.codebook.lengths)
        return digit_rows(self._digits(tokens), self.weight.split(lengths), self.digit_counts.split(lengths))

    def _scores(self, features: Tensor) -> MixtureScores:
        return self._scores_of(*self._logits(features))

    def _scores_of(self, logits: Tensor, log_gate: Tensor) -> MixtureScores:
        return MixtureScores(digit_views(logits, self.codebook.lengths), log_gate)

    def _mean_log_joint(self, logits: Tensor, prior: Tensor, shared: Tensor) -> Tensor:
        """mean_v log p(v), not divided by Z, (N,): linear in the logits when K = 1, and exact; else an
        unbiased estimate from uniform tokens shared by the batch, whose logits are ``shared``."""
        if self.mixtures > 1:
            return (prior.unsqueeze(-1) + shared).logsumexp(dim=1).mean(dim=-1)
        mean = self.digit_counts.to(logits.dtype) / self.vocab_size
        with torch.autocast(logits.device.type, enabled=False):  # it would make them half precision
            return prior.squeeze(-1) + logits @ mean

    def _drawn_digits(self) -> Tensor:
        """(S, H): of the tokens of the smoothing term."""
        count = min(SMOOTHING_TOKENS, self.vocab_size)
        return self._digits(self._sample_tokens(count, self.codebook_slots.device))

    @torch.no_grad()
    def _digit_nll(self, log_gate: Tensor, picked: Tensor) -> dict[str, Tensor]:
        """Loss of each digit under its marginal.

        Args:
            picked: (H, N, K): log p_kh(y_h).
        """
        marginal = (log_gate + picked).logsumexp(dim=-1)
        return {f"digit_{h + 1}_nll": -marginal[h] for h in range(self.heads)}

    @torch.no_grad()
    def _accuracy(self, logits: Tensor, log_gate: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Whether each digit, by itself, and the token are right, from the logits (N, K * sum(L_h))."""
        scores, digits = self._scores_of(logits, log_gate), self._digits(target)
        stats = {
            f"digit_{h + 1}_accuracy": best.eq(digits[:, h]).to(logits.dtype)
            for h, best in enumerate(scores.marginal_argmax())
        }
        return stats | {"accuracy": self._token_accuracy(logits, log_gate, target)}

    @torch.no_grad()
    def _token_accuracy(self, logits: Tensor, log_gate: Tensor, target: Tensor) -> Tensor:
        """Whether the best token is the target: 0 or 1, (N,)."""
        tokens = self._best(self._scores_of(logits, log_gate), 1)[1].squeeze(-1)
        return tokens.eq(target).to(logits.dtype)

    def _digits(self, tokens: Tensor) -> Tensor:
        return unravel(self.codebook_slots[tokens], self.codebook.lengths)

    def _codebook_changed(self) -> None:
        self.lattice = Lattice(self.codebook)
        self.kernel_tables: dict[torch.device, Tables | None] = {}
        self.search_tables: product_search_kernels.SearchTables | None = None
        if self.singles is not None:
            self.singles.regroup(self.codebook)
        digits = self.codebook.digits(torch.arange(self.vocab_size))
        counts = [
            torch.bincount(digits[:, h], minlength=length) for h, length in enumerate(self.codebook.lengths)
        ]
        self.digit_counts.copy_(torch.cat(counts))

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.codebook.lengths))
        tied = "" if self.singles is None else ", tied"
        return f"dim={self.dim}, lengths={shape}, mixtures={self.mixtures}, vocab={self.vocab_size}{tied}"
