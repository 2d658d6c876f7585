"""Criterions that never see V-wide logits; importing registers them."""

from mhe_fairseq.criterions.mhe_cross_entropy import MHECrossEntropyCriterion

__all__ = ["MHECrossEntropyCriterion"]
