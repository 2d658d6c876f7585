"""A user dir for fairseq: mhe_fairseq, the log Z_hat of its sampling head corrected to second order.

E[log Z_hat] is below log Z by about Var(Z_hat) / 2 Z^2. The variance is estimated from the groups that were
drawn (scripts/study/sampling_estimates.py), and half of it, as a share of Z_hat^2, is added to the loss.

For scripts/study/less_bias.py: a model that was trained with it is an ordinary one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent.parent))

import mhe_fairseq  # noqa: E402, F401 - registers the models
from mhe_fairseq.heads.sampling import head  # noqa: E402
from mhe_fairseq.heads.sampling.scores import SampledScores  # noqa: E402
from scripts.study.sampling_estimates import second_order_by_pairs  # noqa: E402


class SecondOrderScores(SampledScores):
    """``SampledScores`` with the correction in log Z_hat, and in the shares that the backward pass reads."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, groups: Any, plan: Any, log_weight: Tensor, *options: Any
    ) -> tuple[Tensor, ...]:
        scores = SampledScores.forward(x, weight, groups, plan, log_weight, *options)
        log_z, gold, mean, best, share, *kept = scores
        correction, share = second_order_by_pairs(share, log_weight, plan.rows, x.size(0))
        return log_z + correction, gold, mean, best, share, *kept


head.SampledScores = SecondOrderScores  # type: ignore[misc]
