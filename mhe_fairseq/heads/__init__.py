"""Output heads for any PyTorch model. Depends on torch only."""

from mhe_fairseq.heads.base import HeadLoss, OutputHead
from mhe_fairseq.heads.product import ProductHead
from mhe_fairseq.heads.softmax import SoftmaxHead

__all__ = ["HeadLoss", "OutputHead", "ProductHead", "SoftmaxHead"]
