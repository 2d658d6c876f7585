"""A cascade over labels any number of which may be right: by soft-max, and by the paper's sigmoids."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import wide
from mhe_fairseq.heads.labels import Labels, label_pairs, padded_labels

if TYPE_CHECKING:
    from mhe_fairseq.heads.cascade.head import CascadeHead
    from mhe_fairseq.heads.cascade.level import Level


def nll(head: CascadeHead, features: Tensor, labels: Labels) -> Tensor:
    """See ``CascadeHead.label_loss``."""
    rows, tokens = label_pairs(labels, features, head.vocab_size)
    digits = head.digits(tokens)
    lost = -head.group_log_probs(features)[rows, digits[:, 0]]
    for h, (level, x) in enumerate(zip(head.levels, head.inputs(features), strict=True), start=1):
        # Labels of one row in one group read the same soft-max.
        pair, place = (rows * level.prefixes + head.prefix(digits, h)).unique(return_inverse=True)
        row, prefix = pair.div(level.prefixes, rounding_mode="floor"), pair % level.prefixes
        lost = lost - level.log_softmax(x, prefix, row)[place, digits[:, h]]
    return lost.new_zeros(len(features)).index_add(0, rows, lost)


def scores(head: CascadeHead, features: Tensor, top_groups: int) -> tuple[Tensor, Tensor]:
    """See ``CascadeHead.multilabel_scores``."""
    _check_top_groups(top_groups)
    score = _first_logits(head, features).sigmoid()
    prefix = torch.arange(score.size(1), device=score.device).expand_as(score)
    for level, x in zip(head.levels, head.inputs(features), strict=True):
        score, place = score.topk(min(top_groups, score.size(1)), dim=1)
        prefix = prefix.gather(1, place)
        logits, child = _children(level, x, prefix)
        # A sigmoid of -inf is 0: where nothing is, the score is 0.
        score = (score.unsqueeze(-1) * logits.sigmoid()).flatten(1)
        prefix = child.flatten(1)
    labels = head.token_of_slot(prefix)
    # Labels whose score underflows to 0 stay before slots that have no label.
    score, order = score.masked_fill(labels < 0, -1.0).sort(dim=1, descending=True, stable=True)
    return labels.gather(1, order), score.clamp(min=0.0)


def loss(head: CascadeHead, features: Tensor, targets: Labels, top_groups: int) -> Tensor:
    """See ``CascadeHead.multilabel_loss``."""
    _check_top_groups(top_groups)
    labels = padded_labels(targets, len(features), head.vocab_size).to(features.device)
    is_label = labels >= 0
    digits = head.digits(labels.clamp(min=0))
    logits = _first_logits(head, features)
    # Every row has one prefix of no digits.
    prefix = labels.new_zeros(len(labels), 1)
    score = logits.new_ones(prefix.shape)
    child = torch.arange(logits.size(1), device=logits.device).expand_as(logits).unsqueeze(1)
    logits = logits.unsqueeze(1)
    total = logits.new_zeros(len(labels))
    inputs = [features, *head.inputs(features)]
    for h, x in enumerate(inputs):
        if h > 0:
            level = head.levels[h - 1]
            prefix, score = _candidates(score, prefix, head.prefix(digits, h), is_label, top_groups)
            logits, child = _children(level, x, prefix)
        gold = _gold(logits, prefix, head.prefix(digits, h), digits[..., h], is_label)
        real = logits != -torch.inf
        # Not -inf times 0, whose gradient is NaN.
        binary = F.binary_cross_entropy_with_logits(
            logits.masked_fill(~real, 0.0), gold, weight=real.to(gold.dtype), reduction="none"
        )
        total = total + binary.flatten(1).sum(dim=1)
        score = (score.unsqueeze(-1) * logits.detach().sigmoid()).flatten(1)
        prefix = child.flatten(1)
    return total


def _first_logits(head: CascadeHead, features: Tensor) -> Tensor:
    """(N, L_1), -inf for groups without tokens."""
    return wide(head.group(features)).masked_fill(head.group_counts == 0, -torch.inf)


def _children(level: Level, x: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the digits after candidate prefixes, -inf for those without tokens, and the prefixes one
    digit longer. Shape: (N, dim), (N, m) -> (N, m, L), (N, m, L)."""
    count, width = prefix.shape
    rows = torch.arange(count, device=prefix.device).repeat_interleave(width)
    logits = level.logits(x, prefix.flatten(), rows).view(count, width, level.length)
    logits = logits.masked_fill(level.counts[prefix] == 0, -torch.inf)
    digit = torch.arange(level.length, device=prefix.device)
    return logits, prefix.unsqueeze(-1) * level.length + digit


def _candidates(
    score: Tensor, prefix: Tensor, gold: Tensor, is_label: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """The best prefixes, the gold ones first, with their scores.

    Shape: (N, C), (N, C), gold prefixes (N, M) -> (N, m), (N, m); m is ``count`` or the most gold ones of a
    row, and not more than C.
    """
    is_gold = ((prefix.unsqueeze(-1) == gold.unsqueeze(1)) & is_label.unsqueeze(1)).any(dim=-1)
    most = int(is_gold.sum(dim=1).max()) if is_gold.numel() else 0
    _, place = (score + 2.0 * is_gold).topk(min(max(count, most), score.size(1)), dim=1)
    return prefix.gather(1, place), score.gather(1, place)


def _gold(logits: Tensor, prefix: Tensor, gold_prefix: Tensor, digit: Tensor, is_label: Tensor) -> Tensor:
    """Which of the digits after candidate prefixes are those of gold labels.

    Shape: (N, m, L), (N, m), (N, M) three times -> (N, m, L) of 0 and 1.
    """
    gold = torch.zeros_like(logits)
    match = (prefix.unsqueeze(-1) == gold_prefix.unsqueeze(1)) & is_label.unsqueeze(1)
    row, place, label = match.nonzero(as_tuple=True)
    gold[row, place, digit[row, label]] = 1.0
    return gold


def _check_top_groups(top_groups: int) -> None:
    if top_groups < 1:
        raise MHEError(f"top_groups must be at least 1, got {top_groups}")
