"""Output heads for any PyTorch model. Depends on torch only."""

from mhe_fairseq.heads.base import HeadLoss, OutputHead
from mhe_fairseq.heads.cascade import CascadeHead
from mhe_fairseq.heads.product import ProductHead
from mhe_fairseq.heads.sampling import SamplingHead
from mhe_fairseq.heads.softmax import SoftmaxHead

__all__ = ["CascadeHead", "HeadLoss", "OutputHead", "ProductHead", "SamplingHead", "SoftmaxHead"]
