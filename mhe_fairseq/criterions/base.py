"""What the criterions for models with a head have in common: their loss, and what they log."""

from __future__ import annotations

import math
from typing import Any

from fairseq import utils
from fairseq.criterions import FairseqCriterion
from fairseq.logging import metrics
from fairseq.tasks.masked_lm import MaskedLMTask
from fairseq.tasks.multilingual_masked_lm import MultiLingualMaskedLMTask
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.models.decoder import TokenLoss
from mhe_fairseq.models.target_count import TargetCount

#: Prefix of the logged sums of a head's own statistics.
_STAT = "mhe_"


def predicts_masked_tokens(task: Any) -> bool:
    """Whether the task's targets are masked tokens, padding elsewhere."""
    return isinstance(task, MaskedLMTask | MultiLingualMaskedLMTask)


class HeadCriterion(FairseqCriterion):
    """loss = (1 - eps - eps_i) nll + eps_i V smooth, eps_i = eps / (V - 1): fairseq's label smoothing, with
    the head's nll and smoothing term in place of sums over V-wide log-probabilities.

    ``nll_loss`` and ``ppl`` are of the true token (base 2), so they compare with a softmax's. Logged too: the
    loss of every digit (group), and in validation, or with ``--report-accuracy``, accuracies in percent.

    Raises:
        MHEError: ``label_smoothing`` not in [0, 1).
    """

    #: On the command line.
    name: str
    #: What to train in its place where the model has no head, for an error.
    stock: str
    #: A model with a head, for an error.
    arch: str
    #: Which logged sum ``nll_loss`` is divided by.
    counted = "ntokens"

    def __init__(self, task: Any, label_smoothing: float, report_accuracy: bool) -> None:
        super().__init__(task)
        if not 0 <= label_smoothing < 1:
            raise MHEError(f"--label-smoothing must be at least 0 and below 1, got {label_smoothing}")
        self.eps = label_smoothing
        self.report_accuracy = report_accuracy

    def check_model(self, model: Any) -> None:
        """Raises:
        MHEError: a model without a head, or one that another of our criterions is for.
        """
        kind = type(model).__name__
        if not getattr(model, "has_mhe_head", False):
            raise MHEError(
                f"--criterion {self.name} needs a model with an mhe head, such as --arch {self.arch}; this "
                f"one is {kind}. For it, --criterion {self.stock} computes the same loss"
            )
        wanted = getattr(model, "mhe_criterion", self.name)
        if wanted != self.name:
            raise MHEError(
                f"--criterion {self.name} is for --arch {self.arch} and the like, and the model is {kind}; "
                f"give --criterion {wanted}"
            )

    def token_loss(self, model: Any, sample: dict[str, Any], target: Tensor) -> tuple[TokenLoss, int]:
        """The model's loss of the targets (B, T), and how many of them are not padding.

        Raises:
            MHEError: a model without a head, or one that another of our criterions is for.
        """
        self.check_model(model)
        # Before the model: see TargetCount. sample["ntokens"] is another number where prefixes are ignored,
        # words of context are not scored, or few tokens are masked.
        count = TargetCount(target, self.padding_idx)
        loss: TokenLoss = model(
            **sample["net_input"],
            target=target,
            count=count,
            smoothing=self.eps > 0,
            accuracy=self.report_accuracy or not model.training,
        )
        return loss, count.value()

    def combine(self, output: TokenLoss, reduce: bool) -> tuple[Tensor, Tensor]:
        """Loss and nll, summed, or (B, T) without ``reduce``."""
        nll, smooth = output.nll, output.smooth
        if reduce:
            nll, smooth = nll.sum(), None if smooth is None else smooth.sum()
        if smooth is None:
            return nll, nll
        vocab = len(self.task.target_dictionary)
        eps_i = self.eps / max(1, vocab - 1)
        return (1.0 - self.eps - eps_i) * nll + eps_i * vocab * smooth, nll

    def log(
        self,
        output: TokenLoss,
        loss: Tensor,
        nll: Tensor,
        sample: dict[str, Any],
        sample_size: int,
        tokens: int,
    ) -> dict[str, Any]:
        """What ``reduce_metrics`` reads; ``tokens`` are those that have a loss."""
        return {
            "loss": loss.detach(),
            "nll_loss": nll.detach(),
            "ntokens": sample["ntokens"],
            "nsentences": sample["target"].size(0),
            "sample_size": sample_size,
            "mhe_tokens": tokens,
            **{_STAT + name: value for name, value in output.stats.items()},
        }

    @classmethod
    def reduce_metrics(cls, logging_outputs: list[dict[str, Any]]) -> None:
        """Aggregate logging outputs from data parallel training; losses in base 2, as fairseq's."""

        def total(name: str) -> float:
            value = sum(log.get(name, 0) for log in logging_outputs)
            return float(value.item() if isinstance(value, Tensor) else value)

        sample_size, count, scored = total("sample_size"), total(cls.counted), total("mhe_tokens")
        # A dummy batch of a rank without data counts as nothing.
        metrics.log_scalar("loss", total("loss") / max(sample_size, 1) / math.log(2), sample_size, round=3)
        metrics.log_scalar("nll_loss", total("nll_loss") / max(count, 1) / math.log(2), count, round=3)
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
