"""How good ranked labels are: P@k, nDCG@k and propensity-scored P@k, as for extreme multi-label text.

Of a document with labels Y and its labels l_1, l_2, ... best first:

- P@k is the share of right ones among the first k.
- nDCG@k is sum_{i <= k} [l_i in Y] / log2(i + 1), divided by what the best ranking has, which is the same
  sum over the first min(k, |Y|) places.
- PSP@k weighs a right label by 1 / p(l), its propensity: how probable it is that the label is noted where it
  is right, 1 / (1 + C (N_l + B)^-A) with C = (log N - 1) (B + 1)^A, for N training documents of which N_l
  have the label (Jain et al., 2016). As is usual, sums over all documents are divided by those of the best
  ranking.

Documents without labels are left out of the means.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError

#: Where the measures are taken.
PLACES = (1, 3, 5)

#: A and B of the propensities where a data set has none of its own.
PROPENSITY = (0.55, 1.5)


def inverse_propensities(counts: Tensor, documents: int, a: float, b: float) -> Tensor:
    """1 / p(label).

    Args:
        counts: (...) training documents that have each label.
        documents: N, all training documents.
        a: A, the exponent.
        b: B, added to the counts.

    Returns:
        (...) float64.

    Raises:
        MHEError: fewer than 3 documents, for which log N - 1 is not positive; a ``b`` that is not
            positive: a label that no document of the training has would weigh without end.
    """
    if documents < 3:
        raise MHEError(f"propensities need at least 3 training documents, got {documents}")
    if not b > 0:
        raise MHEError(f"B of the propensities must be above 0, got {b:g}")
    c = (math.log(documents) - 1.0) * (b + 1.0) ** a
    return 1.0 + c * (counts.double() + b) ** -a


@dataclass
class RankingSums:
    """Sums over documents; those of several batches add up.

    Attributes:
        documents: that have labels.
        unlabelled: that have none.
        sums: name -> sum, of ``names``.
    """

    documents: int = 0
    unlabelled: int = 0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, ranked: Tensor, labels: Tensor, inverse: Tensor) -> None:
        """Count a batch.

        Args:
            ranked: (N, k) long, labels best first, all different; -1: nothing there.
            labels: (N, M) long, the right labels, all different, in any order; below 0: none.
            inverse: (V,) of ``inverse_propensities``.
        """
        is_label = labels >= 0
        has = is_label.any(dim=1)
        ranked, labels, is_label = ranked[has], labels[has], is_label[has]
        inverse = inverse.to(labels.device)
        hit = ((ranked.unsqueeze(2) == labels.unsqueeze(1)) & is_label.unsqueeze(1)).any(dim=2).double()
        weight = inverse[ranked.clamp(min=0)] * hit
        gold = inverse[labels.clamp(min=0)].masked_fill(~is_label, 0.0).sort(dim=1, descending=True).values
        size = is_label.sum(dim=1)
        found: dict[str, Tensor] = {}
        for k in PLACES:
            discount = 1.0 / torch.arange(2, k + 2, device=labels.device).double().log2()
            ideal = discount.cumsum(dim=0)[size.clamp(max=k) - 1]
            first = hit[:, :k]
            gain = (first * discount[: first.size(1)]).sum(dim=1) / ideal
            found[f"p{k}"] = first.sum() / k
            found[f"ndcg{k}"] = gain.sum()
            found[f"psp{k}"] = weight[:, :k].sum()
            found[f"best_psp{k}"] = gold[:, :k].sum()
        self.documents += len(labels)
        self.unlabelled += len(has) - len(labels)
        # One copy from the device.
        for name, value in zip(found, torch.stack(list(found.values())).tolist(), strict=True):
            self.sums[name] = self.sums.get(name, 0.0) + value


def percentages(sums: dict[str, float], documents: float) -> dict[str, float]:
    """ "P@1": 57.9 and so on, in percent.

    Args:
        sums: of ``RankingSums``, of one or of many batches.
        documents: that have labels, at least 1.
    """
    found = {f"P@{k}": 100.0 * sums[f"p{k}"] / documents for k in PLACES}
    found |= {f"nDCG@{k}": 100.0 * sums[f"ndcg{k}"] / documents for k in PLACES}
    return found | {f"PSP@{k}": 100.0 * sums[f"psp{k}"] / sums[f"best_psp{k}"] for k in PLACES}
