"""MHS: the full soft-max, trained on the gold group and a few sampled groups (paper sec. 4, MHS)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import HeadLoss, OutputHead, wide
from mhe_fairseq.heads.margin import Margin
from mhe_fairseq.heads.sampling import kernels as sampling_kernels
from mhe_fairseq.heads.sampling.exact_end import ExactEnd
from mhe_fairseq.heads.sampling.group_sample import (
    checked_frequencies,
    expected_share,
    inclusion_probabilities,
    sample_groups,
)
from mhe_fairseq.heads.sampling.plan import GroupRows, Plan, consecutive
from mhe_fairseq.heads.sampling.predicted import Predictor, among, chances, random_numbers, systematic_rows
from mhe_fairseq.heads.sampling.scores import SampledScores
from mhe_fairseq.heads.softmax import SoftmaxHead

VARIANTS = ("shared", "predicted", "own", "batch")

#: Those that draw groups, and correct for it.
DRAWING = ("shared", "predicted")

#: Tokens that a row is scored on when not told: an eighth of the vocabulary, but no fewer and no more.
SAMPLED_TOKENS = (2048, 8192)

#: Parts of a batch, each with a sample of its own.
PARTS = 8

#: Rows of the N x V logits held at a time when the exact soft-max is asked for, where not told.
EXACT_ROWS = 512


def default_groups(codebook: Codebook) -> int | None:
    """Groups to draw of a codebook: those of ``SAMPLED_TOKENS``, and at most all but one.

    None if there is nothing to draw from, one group or one digit.

    Few groups leave the normaliser of a token too noisy: on a language model of 65,536 pieces 8
    groups of 257 cost 4% of perplexity after 200 updates, 32 groups 1%. Half as many predicted ones cost
    0.08 bits a token of a long training (docs/results.md).
    """
    few, many = SAMPLED_TOKENS
    groups = len(codebook.slots.div(codebook.size // codebook.lengths[0], rounding_mode="floor").unique())
    wanted = min(max(len(codebook) // 8, few), many) * groups // len(codebook)
    return max(1, min(wanted, groups - 1)) if groups > 1 < codebook.heads else None


class SamplingHead(SoftmaxHead):
    """p(y) = softmax(W x)_y with W of V x d, its training restricted to a few groups of tokens.

    A group is the tokens with the same first digit; groups of holes alone do not count. In training the
    normaliser Z = sum_v exp(z_v) of a token is estimated from its gold group and G groups shared by a part
    of the batch (variant "shared")::

        Z_hat = Z_gold + sum over sampled groups g other than the gold one of Z_g / pi_g

    where pi_g is the probability that g is in the sample, so E[Z_hat] = Z exactly, for every token and
    every x; ``nll`` is log Z_hat - z_target. Groups are drawn without replacement with unequal pi_g: in
    proportion to the share of the text they are expected to hold (as ``frequencies`` or Zipf's law tell,
    fairseq's dictionaries being in order of frequency; mixed with their share of the tokens, in case it is
    not so). A group that holds much of the text, as the first one in frequency order does, is in every sample
    (pi_g = 1).
    Measured on a small language model, 600 updates of 1,024 tokens, G = 8 of 96 groups shared by the whole
    batch, validation nats a token: dense 5.49, this 5.59 in frequency order, the same with equal pi_g 5.68;
    5.71 and 5.86 with a codebook of clusters; "own" 6.86.

    Each of 8 parts of the batch, rows that follow one another, draws groups of its own at the same cost: a
    group that is drawn has the gradient of a part of the batch, not every so often one of all of it that is
    as many times too large. The table is gone through group by group, each for the parts that drew it and
    the rows it is the gold group of at once; groups of consecutive tokens, as of a codebook in dictionary
    order, are read and written in place.

    In eval mode, and in ``log_prob``, ``log_probs`` and ``topk`` always, the head is the plain soft-max; in
    training too while ``exact`` is set. Log Z_hat is biased where Z_hat is not, and a few updates with the
    exact loss at the end of a training take most of that back.

    The smoothing term in training is log Z_hat minus the mean logit of all V tokens, which is exact: it
    is x . mean_v W_v.

    Variant "predicted" draws G groups for each row by itself, with probabilities in proportion to the shares
    of the row's probability that a linear soft-max over groups, ``predictor``, expects them to have (mixed
    with those of the text). It learns from the estimate's own shares, beside the loss: its gradient goes to
    its weights alone, and the loss's value is without it. The better it predicts, the less is the variance
    of Z_hat; it predicts best with a codebook of clusters. Nothing but the training's draws reads it.

    The paper's own variants: "own" normalises over the gold group only, "batch" over the union of the
    batch's gold groups, both without correction and with the smoothing term over the same tokens.

    With ``margin`` the gold logit of the estimate has it, as that of the exact loss has. Kernels have no
    margin: such a head computes in plain torch.

    Cost: at most (G + 1) V / L_1 x d multiply-adds a token in training and N x (G + 1) V / L_1 logits (less
    by a group where the gold one is in the sample); a gradient of V x d a step. Evaluation: V x d.

    Args:
        dim: d.
        codebook: tokens <-> digits, at least two digits.
        groups: G, groups drawn (variants "shared" and "predicted" only; default: ``default_groups``).
        tied: an ``nn.Embedding`` with a (V, d) weight to use as W.
        variant: "shared", "predicted", "own" or "batch".
        chunk: as in ``SoftmaxHead``, for the exact loss.
        margin: as in ``SoftmaxHead``.
        frequencies: (V,) of tokens, in any unit; no checkpoint keeps them (default: Zipf's law).

    Attributes:
        exact: train on the exact loss. Set by who trains, before an update.
        exact_end: when that is to be, for who trains; None: not said.

    Raises:
        MHEError: one digit, ``groups`` not in 1 .. number of groups - 1, an unknown variant, a negative
            ``chunk``, ``tied`` of another shape, ``frequencies`` that are not V numbers from 0 on.
    """

    exact: bool = False
    exact_end: ExactEnd | None = None

    group_of_token: Tensor
    place_in_group: Tensor
    tokens_by_group: Tensor
    _first_digits: Tensor
    _share: Tensor
    _kept_log_weight: Tensor
    _kernel_tables: sampling_kernels.SamplingTables | None

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        groups: int | None = None,
        tied: nn.Embedding | None = None,
        variant: str = "shared",
        chunk: int = EXACT_ROWS,
        margin: Margin | None = None,
        frequencies: Tensor | None = None,
    ) -> None:
        if codebook.heads < 2:
            raise MHEError(
                "sampling needs groups of tokens, a codebook of two lengths such as 128,256; "
                f"got one length, {codebook.lengths[0]}"
            )
        if variant not in VARIANTS:
            raise MHEError(f"a sampling head's variant is one of {', '.join(VARIANTS)}; got {variant!r}")
        super().__init__(dim, codebook, tied=tied, chunk=chunk, margin=margin)
        self.groups = (default_groups(codebook) or 1) if groups is None else groups
        self.variant = variant
        self._frequencies = None if frequencies is None else checked_frequencies(frequencies, len(codebook))
        self.predictor: Predictor | None = None
        for name in ("group_of_token", "place_in_group", "tokens_by_group"):
            self.register_buffer(name, torch.empty(len(codebook), dtype=torch.long), persistent=False)
        self._codebook_changed()
        if variant == "predicted":
            prior = torch.zeros(codebook.lengths[0], dtype=torch.float64)
            prior[self._first_digits] = self._share
            self.predictor = Predictor(dim, prior)

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        """Loss of a batch: the estimate in training mode (stats ``sampled_nll`` and, with ``accuracy``,
        ``sampled_accuracy``: the target beats the tokens sampled), exact in eval mode or with ``exact``."""
        if sampling_kernels.serves(self, features):
            whole = sampling_kernels.loss(self, features, target, smoothing, accuracy)
            if whole is not None:
                return whole
        if not self.samples:
            exact = self._as_sampled(super().forward(features, target, smoothing, accuracy))
            if self.training and self.predictor is not None:
                # Every parameter has a gradient in every update: what averages them over ranks waits for it.
                idle = sum(parameter.sum() for parameter in self.predictor.parameters())
                exact = exact._replace(nll=exact.nll + 0.0 * idle)
            return exact
        device = features.device.type
        if torch.is_autocast_enabled(device) and features.dtype != torch.float64:
            features = features.to(torch.get_autocast_dtype(device))
        # The products are in the features' type; autocast would make the sums after them half precision.
        with torch.autocast(device, enabled=False):
            gold_group, shares, inclusion = self.group_of_token[target], None, None
            if self.predictor is not None:
                first_digits, prior = self.drawn_from(features.device)
                shares = self.predictor(features.detach(), first_digits)
                inclusion = chances(shares, prior, self.groups)
            plan = self._plan(target, gold_group, inclusion)
            features = self._angular(features)
            by_head = smoothing and self.margin is not None and self.variant in DRAWING
            log_z, gold, mean, best, share, *_ = SampledScores.apply(
                features,
                self.table.weight,
                GroupRows(self.tokens_by_group, self._starts, self._first),
                plan,
                self._log_weights(plan, wide(features[:0]).dtype, inclusion),
                smoothing and not by_head,
                accuracy,
                self.variant in DRAWING,
                self.margin,
            )
            nll = log_z - gold
            if by_head:
                mean = self._target_and_mean(features, target)[1]
            smooth = log_z - mean if smoothing else None
            stats = {"sampled_nll": nll.detach()}
            if shares is not None:
                entropy = -share * shares[plan.rows, plan.groups]
                taught = torch.zeros_like(nll).index_add(0, plan.rows, entropy.to(nll.dtype))
                nll = nll + (taught - taught.detach())
        if accuracy:
            stats["sampled_accuracy"] = gold.detach().ge(best).to(nll.dtype)
        return HeadLoss(nll, smooth, stats)

    # Of a soft-max, whose training is on a sample: not the dense layer's sigmoids.
    label_loss = OutputHead.label_loss
    label_topk = OutputHead.label_topk

    @property
    def samples(self) -> bool:
        """Whether the loss is the estimate."""
        return self.training and not self.exact

    def _as_sampled(self, loss: HeadLoss) -> HeadLoss:
        """The exact loss, its stats in training those of a sample of all groups: fairseq goes on logging what
        a training has logged once, and has no value for what is left out."""
        if not self.training:
            return loss
        stats = {"sampled_nll": loss.nll.detach()}
        if "accuracy" in loss.stats:
            stats["sampled_accuracy"] = loss.stats["accuracy"]
        return loss._replace(stats=stats)

    def _plan(self, target: Tensor, gold: Tensor, inclusion: Tensor | None) -> Plan:
        """Which groups are scored for which rows of the batch.

        Args:
            inclusion: (N, L) of each row's groups; None: the variant has none.
        """
        if inclusion is None:
            meets = self._meets(gold)
        else:
            drawn = systematic_rows(inclusion, self.groups, self._generator())
            meets = among(drawn, len(self._sizes)).T.contiguous()
            meets[gold, torch.arange(len(gold), device=gold.device)] = True
        return Plan.of(meets, gold, self.place_in_group[target], self._sizes)

    def _meets(self, gold: Tensor) -> Tensor:
        """Which groups rows with these gold groups are scored on. Shape: (N,) -> (groups, N) bool."""
        meets = torch.zeros(len(self._sizes), len(gold), dtype=torch.bool, device=gold.device)
        for begin, end, sample in self._samples(gold):
            meets[sample.to(gold.device), begin:end] = True
        meets[gold, torch.arange(len(gold), device=gold.device)] = True
        return meets

    def _log_weights(self, plan: Plan, dtype: torch.dtype, inclusion: Tensor | None) -> Tensor:
        """Of every pair of a row and a group. Shape: (R,) of ``dtype``."""
        if inclusion is None:
            log_weight = self.log_weights(plan.groups.device, dtype)[plan.groups]
        else:
            log_weight = -inclusion[plan.rows, plan.groups].log().to(dtype)
        log_weight[plan.home] = 0.0  # the gold group is in every sample
        return log_weight

    def _samples(self, gold: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """Rows ``begin .. end`` and groups that they are scored on, beside their gold groups."""
        if self.variant == "batch":
            yield 0, len(gold), gold.unique()
        elif self.variant == "shared":
            for part, sample in enumerate(self.drawn()):
                begin, end = (len(gold) * edge // PARTS for edge in (part, part + 1))
                yield begin, end, torch.from_numpy(sample)

    def drawn(self) -> list[np.ndarray]:
        """The groups that each part of a batch is scored on, int64."""
        samples = sample_groups(self._inclusion[self._drawn], self._generator(), PARTS)
        return [np.concatenate([self._sure, self._drawn[sample]]) for sample in samples]

    def random_numbers(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """What is random in this update's predicted draws. Without a wait for an accelerator."""
        return random_numbers(rows, self.drawn_groups, device, self._generator())

    def drawn_from(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """First digits that have tokens, in order, and their expected shares of the text.

        They stay where they were asked for last: a copy of them in every update is a wait of an accelerator.

        Shape: -> (groups,) long, (groups,) float64.
        """
        if self._share.device != device:
            # Inside a transform of torch.func they would be of that transform only.
            with torch._C._DisableFuncTorch():
                self._first_digits, self._share = self._first_digits.to(device), self._share.to(device)
        return self._first_digits, self._share

    @property
    def drawn_groups(self) -> int:
        """Groups that have tokens."""
        return len(self._sizes)

    def log_weights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """What is added to the logits of each group when it was drawn. Kept as it was asked for last, for the
        reason of ``drawn_from``. Shape: -> (groups,) of ``dtype``."""
        kept = self._kept_log_weight
        if kept.device != device or kept.dtype != dtype:
            with torch._C._DisableFuncTorch():
                self._kept_log_weight = kept = self._log_weight.to(device, dtype)
        return kept

    def kernel_tables(self, device: torch.device) -> sampling_kernels.SamplingTables:
        """What kernels read of the codebook, made where it is first asked for."""
        if self._kernel_tables is None or self._kernel_tables.device != device:
            # Inside a transform of torch.func they would be of that transform only.
            with torch._C._DisableFuncTorch():
                self._kernel_tables = sampling_kernels.SamplingTables.of(self, device)
        return self._kernel_tables

    def _codebook_changed(self) -> None:
        first, order = self._groups_of(self.codebook)
        sizes = torch.bincount(first)
        if self.variant in DRAWING and not 1 <= self.groups < len(sizes):
            raise MHEError(
                f"a sampling head draws some of the {len(sizes)} groups of its codebook besides the gold "
                f"one: groups must be 1..{len(sizes) - 1}, got {self.groups}"
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
        self._first = consecutive(order, self._starts)
        self._sizes = sizes
        self._share = expected_share(first, sizes, self._frequencies)
        self._first_digits = self.codebook.slots.div(
            self.codebook.size // self.codebook.lengths[0], rounding_mode="floor"
        ).unique()
        # Not buffers: `model.half()` would round them.
        self.inclusion = torch.zeros(0, dtype=torch.float64)
        self._log_weight = torch.zeros(len(sizes), dtype=torch.float64)
        if self.variant == "shared":
            self.inclusion = inclusion_probabilities(self._share, self.groups)
            self._log_weight = -self.inclusion.log()
        # As most ask for it: a first step that made it would take more memory than those after it.
        self._kept_log_weight = self._log_weight.float()
        self._inclusion = self.inclusion.numpy()
        self._sure, self._drawn = np.flatnonzero(self._inclusion == 1), np.flatnonzero(self._inclusion < 1)
        self._kernel_tables = None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        """Of a checkpoint without a predictor, or with one of other groups, it begins anew; one that is not
        asked for is left out."""
        own = {} if self.predictor is None else dict(self.predictor.named_parameters())
        for name in ("weight", "bias"):
            key = f"{prefix}predictor.{name}"
            if name not in own:
                state_dict.pop(key, None)
            elif key not in state_dict or state_dict[key].shape != own[name].shape:
                state_dict[key] = own[name].detach()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    @staticmethod
    def _groups_of(codebook: Codebook) -> tuple[Tensor, Tensor]:
        """(V,) group of each token, numbered without the empty ones; (V,) tokens in order of slots."""
        order = codebook.slots.argsort()
        first = codebook.slots.div(codebook.size // codebook.lengths[0], rounding_mode="floor")
        return first.unique(return_inverse=True)[1], order

    def extra_repr(self) -> str:
        drawn = f", groups={self.groups} of {len(self._starts) - 1}" if self.variant in DRAWING else ""
        return f"dim={self.dim}, vocab={self.vocab_size}, variant={self.variant}{drawn}"
