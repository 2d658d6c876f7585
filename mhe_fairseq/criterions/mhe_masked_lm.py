"""``--criterion mhe_masked_lm``: fairseq's masked_lm for models with a head."""

# No `from __future__ import annotations`: fairseq reads the types of the dataclass's fields.
from dataclasses import dataclass, field
from typing import Any

from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from mhe_fairseq.criterions.base import HeadCriterion, predicts_masked_tokens
from mhe_fairseq.errors import MHEError


@dataclass
class MHEMaskedLMCriterionConfig(FairseqDataclass):
    """Without flags it is fairseq's ``masked_lm``."""

    label_smoothing: float = field(
        default=0.0, metadata={"help": "epsilon for label smoothing, 0 means no label smoothing"}
    )
    report_accuracy: bool = field(
        default=False, metadata={"help": "report accuracy of tokens and digits in training too"}
    )


@register_criterion("mhe_masked_lm", dataclass=MHEMaskedLMCriterionConfig)
class MHEMaskedLMCriterion(HeadCriterion):
    """For masked language models: averages are over the masked tokens, which are the sample size.

    Raises:
        MHEError: a flag out of range, or a task without masked tokens.
    """

    name, stock, arch = "mhe_masked_lm", "masked_lm", "mhe_roberta"
    counted = "sample_size"

    def __init__(self, task: Any, label_smoothing: float = 0.0, report_accuracy: bool = False) -> None:
        super().__init__(task, label_smoothing, report_accuracy)
        if not predicts_masked_tokens(task):
            raise MHEError(
                "--criterion mhe_masked_lm predicts the tokens that --task masked_lm masks, and the task is "
                f"{type(task).__name__}; for language models and translation give --criterion "
                "mhe_cross_entropy, for sentences with labels --criterion sentence_prediction"
            )

    def forward(
        self, model: Any, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Returns the loss (summed, or (B, T) without ``reduce``), the number of masked tokens and what to
        log."""
        output, tokens = self.token_loss(model, sample, sample["target"])
        loss, nll = self.combine(output, reduce)
        # A number of the host: fairseq's trainer would wait for one of the device wherever it divides by it.
        return loss, tokens, self.log(output, loss, nll, sample, tokens, tokens)
