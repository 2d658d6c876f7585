"""``--criterion mhe_multilabel``: the loss of documents with labels, and how good ranked labels are."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
import math
from dataclasses import dataclass
from typing import Any

from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from mhe_fairseq.criterions.label_ranking import PLACES, RankingSums, percentages
from mhe_fairseq.errors import MHEError

#: Of what is logged, sums that measures are made of; fairseq does not print names that begin so.
_SUM = "_sum_"


@dataclass
class MHEMultilabelCriterionConfig(FairseqDataclass):
    """It has no flags."""


@register_criterion("mhe_multilabel", dataclass=MHEMultilabelCriterionConfig)
class MHEMultilabelCriterion(FairseqCriterion):
    """A document's loss is that of its head, summed over its labels; the average is over documents with
    labels, in base 2. In validation P@k, nDCG@k and PSP@k, k = 1, 3, 5, in percent, of documents with labels.

    Raises:
        MHEError: another task.
    """

    def __init__(self, task: Any) -> None:
        super().__init__(task)
        if getattr(task, "label_names", None) is None:
            raise MHEError(
                "--criterion mhe_multilabel is for --task mhe_multilabel, and the task is "
                f"{type(task).__name__}"
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Any, int, dict[str, Any]]:
        """The loss (summed, or (B,) without ``reduce``), the number of documents with labels, and what to
        log.

        Raises:
            MHEError: a model that gives no labels.
        """
        if getattr(model, "mhe_criterion", None) != "mhe_multilabel":
            raise MHEError(
                "--criterion mhe_multilabel needs a model that gives documents labels, such as --arch "
                f"mhe_label_bag; this one is {type(model).__name__}"
            )
        target, count = sample["target"], len(self.task.label_names)
        # What the training set does not have, no head can learn.
        known = target.masked_fill(target >= count, -1)
        wanted = 0 if model.training else PLACES[-1]
        found = model(**sample["net_input"], labels=known, best=wanted)
        loss, best = found if wanted else (found, None)
        size = int((known >= 0).any(dim=1).sum())
        loss = loss.sum() if reduce else loss
        logged = {
            "loss": loss.detach().sum(),
            "ntokens": sample["ntokens"],
            "nsentences": target.size(0),
            "sample_size": size,
        }
        if best is not None:
            sums = RankingSums()
            sums.add(best, target, self.task.inverse_propensities())
            logged |= {_SUM + "documents": sums.documents, _SUM + "unlabelled": sums.unlabelled}
            logged |= {_SUM + name: value for name, value in sums.sums.items()}
        return loss, size, logged

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training."""

        def total(name: str) -> float:
            value = sum(log.get(name, 0) for log in logging_outputs)
            return float(value.item() if isinstance(value, Tensor) else value)

        # A dummy batch of a rank without data counts as nothing.
        size = total("sample_size")
        metrics.log_scalar("loss", total("loss") / max(size, 1) / math.log(2), size, round=3)
        names = sorted({name for log in logging_outputs for name in log if name.startswith(_SUM)})
        if not names:
            return
        for name in names:
            metrics.log_scalar_sum(name, total(name))
        for name in percentages(dict.fromkeys((each.removeprefix(_SUM) for each in names), 1.0), 1.0):
            metrics.log_derived(name, lambda meters, name=name: _measure(meters, name))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All are sums: ranks add them up before ``reduce_metrics``."""
        return True


def _measure(meters: Any, name: str) -> float:
    """One of the percentages, of the sums so far; 0 before there is a document with labels."""
    sums = {key.removeprefix(_SUM): meters[key].sum for key in meters if key.startswith(_SUM)}
    documents = sums["documents"]
    return round(float(percentages(sums, documents)[name]), 2) if documents else 0.0
