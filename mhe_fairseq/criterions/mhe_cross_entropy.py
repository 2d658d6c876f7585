"""``--criterion mhe_cross_entropy``: fairseq's label_smoothed_cross_entropy for models with a head."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
import math
from dataclasses import dataclass, field
from typing import Any

from fairseq import utils
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from omegaconf import II
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.decoder import TokenLoss

#: Prefix of the logged sums of a head's own statistics.
_STAT = "mhe_"


@dataclass
class MHECrossEntropyCriterionConfig(FairseqDataclass):
    """The flags of fairseq's ``label_smoothed_cross_entropy``, by the same names."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing, 0 means no label smoothing"}
    )
    report_accuracy: bool = field(
        default=False, metadata={"help": "report accuracy of tokens and digits in training too"}
    )
    ignore_prefix_size: int = field(default=0, metadata={"help": "ignore first N tokens"})
    sentence_avg: bool = II("optimization.sentence_avg")


@register_criterion("mhe_cross_entropy", dataclass=MHECrossEntropyCriterionConfig)
class MHECrossEntropyCriterion(FairseqCriterion):
    """loss = (1 - eps - eps_i) nll + eps_i V smooth, eps_i = eps / (V - 1): fairseq's label smoothing, with
    the head's nll and smoothing term in place of sums over V-wide log-probabilities.

    ``nll_loss`` and ``ppl`` are of the true token (base 2), so they compare with a softmax's. Logged too: the
    loss of every digit (group), and in validation, or with ``--report-accuracy``, accuracies in percent.
    """

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise MHEError(f"--label-smoothing must be at least 0 and below 1, got {label_smoothing}")
        if ignore_prefix_size < 0:
            raise MHEError(f"--ignore-prefix-size must be at least 0, got {ignore_prefix_size}")
        self.sentence_avg = sentence_avg
        self.eps = label_smoothing
        self.ignore_prefix_size = ignore_prefix_size
        self.report_accuracy = report_accuracy

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns the loss (summed, or (B, T) without ``reduce``), the sample size and what to log."""
        if not getattr(model, "has_mhe_head", False):
            raise MHEError(
                f"--criterion mhe_cross_entropy needs a model with an mhe head, such as --arch "
                f"mhe_transformer; this one is {type(model).__name__}. For it, "
                "--criterion label_smoothed_cross_entropy computes the same loss"
            )
        target = sample["target"]
        if self.ignore_prefix_size > 0:
            target = target.clone()
            target[:, : self.ignore_prefix_size] = self.padding_idx
        output: TokenLoss = model(
            **sample["net_input"],
            target=target,
            smoothing=self.eps > 0,
            accuracy=self.report_accuracy or not model.training,
        )
        nll, smooth = output.nll, output.smooth
        if reduce:
            nll, smooth = nll.sum(), None if smooth is None else smooth.sum()
        loss = nll
        if smooth is not None:
            vocab = len(self.task.target_dictionary)
            eps_i = self.eps / max(1, vocab - 1)
            loss = (1.0 - self.eps - eps_i) * nll + eps_i * vocab * smooth
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        logging_output = {
            "loss": loss.detach(),
            "nll_loss": nll.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            "mhe_tokens": output.tokens,
            **{_STAT + name: value for name, value in output.stats.items()},
        }
        return loss, sample_size, logging_output

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training; losses in base 2, as fairseq's."""

        def total(name: str) -> float:
            value = sum(log.get(name, 0) for log in logging_outputs)
            return float(value.item() if isinstance(value, Tensor) else value)

        sample_size, ntokens, scored = total("sample_size"), total("ntokens"), total("mhe_tokens")
        # A dummy batch of a rank without data counts as nothing.
        metrics.log_scalar("loss", total("loss") / max(sample_size, 1) / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total("nll_loss") / max(ntokens, 1) / math.log(2), ntokens, round=3)
        metrics.log_derived("ppl", lambda meters: utils.get_perplexity(meters["nll_loss"].avg))
        names = sorted({name for log in logging_outputs for name in log if name.startswith(_STAT)})
        for name in names:
            if name == "mhe_tokens" or scored == 0:
                continue
            mean = total(name) / scored
            if name.endswith("accuracy"):
                metrics.log_scalar(name.removeprefix(_STAT), 100.0 * mean, scored, round=3)
            else:
                metrics.log_scalar(name.removeprefix(_STAT), mean / math.log(2), scored, round=3)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """All are sums: ranks add them up before ``reduce_metrics``."""
        return True
