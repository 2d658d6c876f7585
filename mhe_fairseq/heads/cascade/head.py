"""MHC: a distribution over groups of tokens, then one over the tokens of a group (paper sec. 4, MHC)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mhe_fairseq.coding.codebook import Codebook, ravel, unravel
from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import Candidates, HeadLoss, OutputHead, to_numpy, wide
from mhe_fairseq.heads.cascade import kernels as cascade_kernels
from mhe_fairseq.heads.cascade import multilabel as multilabel
from mhe_fairseq.heads.cascade import search_kernels as cascade_search_kernels
from mhe_fairseq.heads.cascade.group import GroupLinear
from mhe_fairseq.heads.cascade.level import Level, LevelLoss
from mhe_fairseq.heads.cascade.reading import CascadeReading
from mhe_fairseq.heads.cascade.search import best_first
from mhe_fairseq.heads.labels import Labels
from mhe_fairseq.heads.rows.input_rows import prefix_rows
from mhe_fairseq.heads.rows.tied import check_embedding
from mhe_fairseq.heads.slot_names import SlotNames

SMOOTHING_FORMS = ("sampled", "per-level")

#: Groups a token's smoothing term is estimated on, when not told (fewer where there are not more groups).
SMOOTHING_GROUPS = 2

#: Parts of a batch with such groups of their own.
SMOOTHING_PARTS = 8


class CascadeHead(OutputHead):
    """p(y) = p(group) p(local | group): the digits of a token one after the other (H = 2 or 3).

    The group is the leading digit; the local digit is a soft-max over the rows of the gold group only. With
    H = 3 there are groups of groups: p(y) = p(y_1) p(y_2 | y_1) p(y_3 | y_1, y_2). Holes get no probability.

    With m prototypes p(group) is the sum over m rows of a group in a soft-max over all groups' rows, as it is
    over a group's tokens in a soft-max over tokens. The other digits have one row each.

    Cost: (m L_1 + L_2) d multiply-adds a token in training, (G L_2) d for the smoothing term. The table of
    local rows has V x d parameters (plus holes), V x r with ``bottleneck=r``, none of its own when tied; its
    gradient is dense. A gradient of touched rows only, for a sparse optimiser, is not offered: with
    groups of about sqrt(V) tokens a batch of 2,048 touches 98% of 512 groups, and Adam's moments move the
    untouched rows too. Where the optimiser step is what costs, a bottleneck divides it by d / r.

    Smoothing term (``smooth``), mean over the V tokens of -log p(token):

    - "sampled": exact for the first digit; the rest is estimated without bias on the groups of
      ``groups_sampled`` uniform tokens, others in each of eight parts of the batch.
    - "per-level": exact for the first digit, the rest on the gold group only. Biased: it leaves
      p(local | group) free elsewhere, and EOS keeps a floor that ends translations early.

    ``stats``: "group_nll", ("subgroup_nll" when H = 3,) "local_nll", each given the gold digits before it;
    with ``accuracy`` the same with "_accuracy", and "accuracy" of the token.

    Args:
        dim: d.
        codebook: tokens <-> digits, two or three of them.
        bottleneck: r: features are projected to r numbers for the local rows (the paper's hidden_dim).
        tied: an ``nn.Embedding`` with a (V, d) weight whose rows are the local rows. It stays the model's:
            it is neither registered nor saved here.
        tied_groups: an ``nn.Embedding`` with a (V, d) weight, mostly the same one, added to the rows of first
            digits that have one token.
        rows_in_input: ``input_rows`` gives the rows of a token's groups, those of several tokens.
        groups_sampled: for the smoothing term; None: 2, or 1 where there are only two groups.
        smoothing_form: "sampled" or "per-level".
        dropout: of the features that the digits after the first read, in training (``forward`` only).
        group_prototypes: m, rows of each group for the first digit, whose exponentials are added.

    Raises:
        MHEError: one digit or more than three; ``bottleneck`` not in 1..d, or with ``tied``; ``tied`` of
            another shape; ``groups_sampled`` not in 1 .. number of groups - 1; an unknown
            ``smoothing_form``; ``dropout`` not in [0, 1); ``group_prototypes`` not in 1..64.
    """

    finds_best = True
    searches_beams = True
    group_counts: Tensor
    slot_names: SlotNames | None
    _kernel_tables: cascade_kernels.CascadeTables | None

    def __init__(
        self,
        dim: int,
        codebook: Codebook,
        bottleneck: int | None = None,
        tied: nn.Embedding | None = None,
        groups_sampled: int | None = None,
        smoothing_form: str = "sampled",
        dropout: float = 0.0,
        tied_groups: nn.Embedding | None = None,
        rows_in_input: bool = False,
        group_prototypes: int = 1,
    ) -> None:
        super().__init__(dim, codebook)
        _check_arguments(dim, codebook, bottleneck, tied, smoothing_form, dropout)
        lengths = codebook.lengths
        self.groups_sampled = _check_groups_sampled(groups_sampled, codebook)
        self.smoothing_form = smoothing_form
        self.dropout = dropout
        self.group = GroupLinear(dim, codebook, tied_groups, group_prototypes)
        self.subgroup = Level(lengths[0], lengths[1], dim) if len(lengths) == 3 else None
        self.project: nn.Linear | None = None
        if bottleneck is not None:
            self.project = nn.Linear(dim, bottleneck, bias=False)
            nn.init.normal_(self.project.weight, mean=0.0, std=dim**-0.5)
        self.local = self._last_level(math.prod(lengths[:-1]), lengths[-1], bottleneck or dim, tied)
        self.register_buffer("group_counts", torch.zeros(lengths[0], dtype=torch.long), persistent=False)
        if rows_in_input:
            self._give_input_rows()
        self._codebook_changed()

    def _last_level(self, prefixes: int, length: int, width: int, tied: nn.Embedding | None) -> Level:
        return Level(prefixes, length, width, tied)

    @property
    def levels(self) -> list[Level]:
        """Of the digits after the first."""
        return [self.local] if self.subgroup is None else [self.subgroup, self.local]

    @property
    def is_tied(self) -> bool:
        """The local rows are an embedding's."""
        return self.local.is_tied

    def forward(
        self, features: Tensor, target: Tensor, smoothing: bool = True, accuracy: bool = False
    ) -> HeadLoss:
        if cascade_kernels.serves(self, features):
            whole = cascade_kernels.loss(self, features, target, smoothing, accuracy)
            if whole is not None:
                parts = [
                    LevelLoss(nll, None, None if whole.digit_right is None else whole.digit_right[h])
                    for h, nll in enumerate(whole.digit_nll)
                ]
                return HeadLoss(whole.nll, whole.smooth, self._stats(parts, features, target, accuracy))
        digits = self.digits(target)
        sampled = None
        if smoothing and self.smoothing_form == "sampled":
            sampled = self.digits(self._smoothing_tokens(digits[:, 0]))
        parts = [self._group_loss(features, digits[:, 0], smoothing, accuracy)]
        inputs = self.inputs(F.dropout(features, self.dropout, self.training))
        for h, (level, x) in enumerate(zip(self.levels, inputs, strict=True), start=1):
            parts.append(
                level.loss(
                    x,
                    self.prefix(digits, h),
                    digits[:, h],
                    sampled=None if sampled is None else self.prefix(sampled, h),
                    per_level=smoothing and sampled is None,
                    accuracy=accuracy,
                )
            )
        nll = _total([part.nll for part in parts])
        smooth = _total([part.smooth for part in parts if part.smooth is not None]) if smoothing else None
        return HeadLoss(nll, smooth, self._stats(parts, features, target, accuracy))

    def input_rows(self, tokens: Tensor) -> Tensor | None:
        if not self.has_input_rows:
            return None
        marks = self.group.input_table()
        tables = [marks] if self.subgroup is None else [marks, self.subgroup.table]
        return prefix_rows(self.digits(tokens), self.codebook.lengths, tables, self.group_counts)

    def log_probs(self, features: Tensor) -> Tensor:
        scores = self.group_log_probs(features)
        for level, x in zip(self.levels, self.inputs(features), strict=True):
            local, scores = level.all_log_softmax(x), scores.unsqueeze(-1)
            scores = (local + scores if local.requires_grad else local.add_(scores)).flatten(1)
        return scores.index_select(-1, self.codebook_slots)

    def read(self, features: Tensor) -> CascadeReading:
        return CascadeReading(self, features)

    def why_wide(self, beam: int) -> str | None:
        weight = self.group.weight
        if not self.finds_best or weight.device.type == "cpu":
            return super().why_wide(beam)
        if cascade_search_kernels.serves(self, weight, 2 * beam, beam):
            return None
        return f"on {weight.device.type} kernels search a {type(self).__name__}, and they cannot be used here"

    @torch.no_grad()
    def topk(self, features: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k best tokens; only groups that may hold one of them are opened. Not differentiable."""
        self._check_k(k)
        return self.read(features).topk(k)

    @torch.no_grad()
    def log_prob_of(self, features: Tensor, tokens: Tensor) -> Tensor:
        return self.read(features).log_prob_of(tokens)

    @torch.no_grad()
    def candidates(self, features: Tensor, k: int, tokens: Tensor) -> Candidates:
        self._check_k(k)
        return self.read(features).candidates(k, tokens)

    @torch.no_grad()
    def beam_candidates(
        self, features: Tensor, k: int, scores: Tensor, beam: int, without: Tensor
    ) -> tuple[Tensor, Tensor]:
        self._check_k(k + len(without))
        return self.read(features).beam_candidates(k, scores, beam, without)

    def best_by_groups(self, groups: Tensor, inputs: list[Tensor], k: int) -> tuple[Tensor, Tensor]:
        """``topk`` in plain torch, from ``group_log_probs`` and ``inputs``."""
        best, slots = best_first(groups, self.levels, inputs, k)
        # A row of NaN may have holes among its best; let them be some token.
        return best, self.token_of_slot(slots).clamp(min=0)

    def label_loss(self, features: Tensor, labels: Labels) -> Tensor:
        """As ``OutputHead.label_loss``; a group of several of a row's labels is opened once."""
        if cascade_kernels.serves(self, features):
            return super().label_loss(features, labels)
        return multilabel.nll(self, features, labels)

    def multilabel_scores(self, features: Tensor, top_groups: int) -> tuple[Tensor, Tensor]:
        """Labels of the best groups with the paper's multi-label score, a product of sigmoids.

        The first digit's sigmoids choose the ``top_groups`` best groups (with H = 3 then as many of their
        subgroups); a label's score is the sigmoid of its group times that of its local digit.

        Shape: (N, d) -> (N, C) labels and (N, C) scores, best first; C = min(top_groups, groups) x L.
        Where a row has fewer candidates the label is -1 and the score 0.

        Raises:
            MHEError: ``top_groups`` below 1.
        """
        return multilabel.scores(self, features, top_groups)

    def multilabel_loss(self, features: Tensor, targets: Labels, top_groups: int) -> Tensor:
        """The paper's loss: binary cross-entropy of groups, plus that of the labels of candidate groups: the
        ``top_groups`` best ones, and the gold ones always.

        Args:
            features: (N, d).
            targets: the labels of every row: N lists, or (N, M) long padded with -1.
            top_groups: candidate groups for a row, at least 1.

        Returns:
            (N,): summed over groups and over candidates.

        Raises:
            MHEError: ``top_groups`` below 1, another number of rows, a label outside 0..V-1.
        """
        return multilabel.loss(self, features, targets, top_groups)

    def digits(self, tokens: Tensor) -> Tensor:
        """(...) long -> (..., H) long."""
        return unravel(self.codebook_slots[tokens], self.codebook.lengths)

    def prefix(self, digits: Tensor, count: int) -> Tensor:
        """The first ``count`` digits as one number. Shape: (..., H) -> (...)."""
        if count == 0:
            return torch.zeros_like(digits[..., 0])
        return ravel(digits[..., :count], self.codebook.lengths[:count])

    def inputs(self, features: Tensor) -> list[Tensor]:
        """What each of ``levels`` reads. Shape: (N, d) -> (N, d) or (N, r)."""
        local = features if self.project is None else self.project(features)
        return [local] if self.subgroup is None else [features, local]

    def group_log_probs(self, features: Tensor) -> Tensor:
        """log p(first digit), -inf for those without tokens. Shape: (N, d) -> (N, L_1)."""
        return F.log_softmax(self._mask(self.group.wide_logits(features)), dim=-1)

    def _smoothing_tokens(self, group: Tensor) -> Tensor:
        """Uniform tokens, whose groups smooth the rows with these gold groups. Shape: (N,) -> (N, S).

        A batch is in parts, each with tokens of its own: the gradient of a group that is drawn is that of
        a part of the batch, not of all of it every so often. Which part a row is in hangs on its gold group
        and the update, not on its place: batches that are split over processes draw the same.
        """
        tokens, part = (torch.from_numpy(each).to(group.device) for each in self.drawn_tokens())
        return tokens[part[group]]

    def drawn_tokens(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of each part of a batch, (parts, S), and the part of each first digit, (L_1,), int64."""
        parts, count = SMOOTHING_PARTS, self.groups_sampled
        generator = self._generator()
        tokens = self._sample_numbers(parts * count, generator)
        order = to_numpy(torch.randperm(len(tokens), generator=generator))
        part = to_numpy(torch.randperm(self.codebook.lengths[0], generator=generator)) % parts
        return tokens[order].reshape(parts, count), part

    def kernel_tables(self, device: torch.device) -> cascade_kernels.CascadeTables:
        """What kernels read of the codebook, made where it is first asked for."""
        if self._kernel_tables is None or self._kernel_tables.device != device:
            # Inside a transform of torch.func they would be of that transform only.
            with torch._C._DisableFuncTorch():
                self._kernel_tables = cascade_kernels.CascadeTables.of(self, device)
        return self._kernel_tables

    def _group_loss(self, features: Tensor, gold: Tensor, smoothing: bool, accuracy: bool) -> LevelLoss:
        logits = wide(self.group(features))
        masked = self._mask(logits)
        nll = F.cross_entropy(masked, gold, reduction="none")
        smooth = None
        if smoothing:
            share = self.group_counts.to(logits.dtype) / self.vocab_size
            # No matrix product: autocast would make it half precision.
            smooth = masked.logsumexp(dim=-1) - (logits * share).sum(dim=-1)
        correct = masked.argmax(dim=-1).eq(gold).to(nll.dtype) if accuracy else None
        return LevelLoss(nll, smooth, correct)

    @torch.no_grad()
    def _stats(
        self, parts: list[LevelLoss], features: Tensor, target: Tensor, accuracy: bool
    ) -> dict[str, Tensor]:
        names = ["group", "local"] if self.subgroup is None else ["group", "subgroup", "local"]
        stats = {}
        for name, part in zip(names, parts, strict=True):
            stats[f"{name}_nll"] = part.nll.detach()
            if part.correct is not None:
                stats[f"{name}_accuracy"] = part.correct
        if accuracy:
            stats["accuracy"] = self.topk(features, 1)[1].squeeze(-1).eq(target).to(parts[0].nll.dtype)
        return stats

    def _mask(self, logits: Tensor) -> Tensor:
        return logits.masked_fill(self.group_counts == 0, -torch.inf) if self._has_empty else logits

    def _codebook_changed(self) -> None:
        book = self.codebook
        self._kernel_tables = None
        self.slot_names = None
        self.group.regroup(book)
        counts = (book.token_of_slot >= 0).long()
        for level in reversed(self.levels):
            table = counts.view(level.prefixes, level.length)
            level.set_tokens(table, book.token_of_slot)
            counts = table.sum(dim=1)
        self.group_counts.copy_(counts)
        self._has_empty = bool((counts == 0).any())

    def extra_repr(self) -> str:
        shape = "x".join(map(str, self.codebook.lengths))
        text = f"dim={self.dim}, lengths={shape}, vocab={self.vocab_size}, smoothing={self.smoothing_form}"
        if self.group.prototypes > 1:
            text += f", group_prototypes={self.group.prototypes}"
        if self.smoothing_form == "sampled":
            text += f", groups_sampled={self.groups_sampled}"
        return text + (f", dropout={self.dropout}" if self.dropout else "")


def _check_arguments(
    dim: int,
    codebook: Codebook,
    bottleneck: int | None,
    tied: nn.Embedding | None,
    smoothing_form: str,
    dropout: float,
) -> None:
    if codebook.heads not in (2, 3):
        raise MHEError(
            "a cascade needs a codebook of two or three lengths such as 128,256; "
            f"got {codebook.heads}: {','.join(map(str, codebook.lengths))}"
        )
    if bottleneck is not None:
        if tied is not None:
            raise MHEError(
                f"bottleneck={bottleneck} cannot be combined with a tied embedding, whose rows have {dim} "
                "numbers; give one of the two"
            )
        if not 1 <= bottleneck <= dim:
            raise MHEError(f"bottleneck must be 1..{dim} (the width of the features), got {bottleneck}")
    if tied is not None:
        check_embedding(tied, len(codebook), dim)
    if smoothing_form not in SMOOTHING_FORMS:
        raise MHEError(f"smoothing_form is one of {', '.join(SMOOTHING_FORMS)}; got {smoothing_form!r}")
    if not 0.0 <= dropout < 1.0:
        raise MHEError(f"dropout must be at least 0 and below 1, got {dropout}")


def _check_groups_sampled(count: int | None, codebook: Codebook) -> int:
    """The number of groups to sample, from what was asked for."""
    # Prefixes (all digits but the last) that have tokens.
    groups = len(codebook.slots.div(codebook.lengths[-1], rounding_mode="floor").unique())
    if count is None:
        return max(1, min(SMOOTHING_GROUPS, groups - 1))
    if groups == 1:
        raise MHEError(f"groups_sampled={count} was given, but the codebook has one group of tokens only")
    if not 1 <= count < groups:
        raise MHEError(
            f"the smoothing term is estimated on some of the codebook's {groups} groups: groups_sampled "
            f"must be 1..{groups - 1}, got {count}"
        )
    return count


def _total(parts: list[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total
