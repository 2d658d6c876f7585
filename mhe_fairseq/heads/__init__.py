"""Output heads for any PyTorch model. Depends on torch only."""

from mhe_fairseq.heads.allowed import Allowed
from mhe_fairseq.heads.base import Candidates, HeadLoss, OutputHead
from mhe_fairseq.heads.cascade.head import CascadeHead
from mhe_fairseq.heads.margin import Margin
from mhe_fairseq.heads.product.head import ProductHead
from mhe_fairseq.heads.sampling.head import SamplingHead
from mhe_fairseq.heads.sharded.cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded.sampling import ShardedSamplingHead
from mhe_fairseq.heads.sharded.shards import Shard
from mhe_fairseq.heads.softmax import SoftmaxHead

__all__ = [
    "Allowed",
    "Candidates",
    "CascadeHead",
    "HeadLoss",
    "Margin",
    "OutputHead",
    "ProductHead",
    "SamplingHead",
    "Shard",
    "ShardedCascadeHead",
    "ShardedSamplingHead",
    "SoftmaxHead",
]
