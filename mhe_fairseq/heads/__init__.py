"""Output heads for any PyTorch model. Depends on torch only."""

from mhe_fairseq.heads.base import HeadLoss, OutputHead

__all__ = ["HeadLoss", "OutputHead"]
