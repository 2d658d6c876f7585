"""``--criterion mhe_cross_entropy``: fairseq's label_smoothed_cross_entropy for models with a head."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from omegaconf import II
from torch import Tensor

from mhe_fairseq.criterions.base import HeadCriterion, predicts_masked_tokens
from mhe_fairseq.errors import MHEError


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
class MHECrossEntropyCriterion(HeadCriterion):
    """For translation and language models.

    Raises:
        MHEError: a flag out of range, or a task of masked tokens.
    """

    name, stock, arch = "mhe_cross_entropy", "label_smoothed_cross_entropy", "mhe_transformer"

    def __init__(
        self,
        task: Any,
        sentence_avg: bool,
        label_smoothing: float,
        ignore_prefix_size: int = 0,
        report_accuracy: bool = False,
    ) -> None:
        super().__init__(task, label_smoothing, report_accuracy)
        if ignore_prefix_size < 0:
            raise MHEError(f"--ignore-prefix-size must be at least 0, got {ignore_prefix_size}")
        if predicts_masked_tokens(task):
            raise MHEError(
                f"--criterion mhe_cross_entropy predicts every token, and {type(task).__name__} masks some "
                "and asks for these; give --criterion mhe_masked_lm and --arch mhe_roberta or the like"
            )
        self.sentence_avg = sentence_avg
        self.ignore_prefix_size = ignore_prefix_size

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns the loss (summed, or (B, T) without ``reduce``), the sample size and what to log."""
        target = sample["target"]
        if self.ignore_prefix_size > 0:
            target = target.clone()
            target[:, : self.ignore_prefix_size] = self.padding_idx
        output, tokens = self.token_loss(model, sample, target)
        loss, nll = self.combine(output, reduce)
        sample_size = sample["target"].size(0) if self.sentence_avg else sample["ntokens"]
        return loss, sample_size, self.log(output, loss, nll, sample, sample_size, tokens)

    def compute_loss(
        self, model: Any, net_output: tuple[Tensor, Any], sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, Tensor]:
        """The loss of what a decoder has given already, as ``label_smoothed_cross_entropy`` has it for tasks
        that call the decoder themselves (fairseq's ``translation_moe``).

        Args:
            model: with the head.
            net_output: of its decoder without a target: features (B, T, d) first.
            sample: with the target (B, T).
            reduce: sum over the tokens.

        Returns:
            The loss and its part that is -log p(target), summed, or (B T, 1) without ``reduce``, T less the
            ignored prefix; zero where the target is padding.

        Raises:
            MHEError: a model that this criterion is not for.
        """
        self.check_model(model)
        features, target = (
            each[:, self.ignore_prefix_size :].contiguous() for each in (net_output[0], sample["target"])
        )
        output = model.head_side.head_loss(features, target, self.padding_idx, self.eps > 0, False)
        loss, nll = self.combine(output, reduce)
        return (loss, nll) if reduce else (loss.reshape(-1, 1), nll.reshape(-1, 1))
