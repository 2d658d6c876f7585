"""Criterions that never see V-wide logits; importing registers them."""

from mhe_fairseq.criterions.mhe_cross_entropy import MHECrossEntropyCriterion
from mhe_fairseq.criterions.mhe_masked_lm import MHEMaskedLMCriterion
from mhe_fairseq.criterions.mhe_multilabel import MHEMultilabelCriterion

__all__ = ["MHECrossEntropyCriterion", "MHEMaskedLMCriterion", "MHEMultilabelCriterion"]
