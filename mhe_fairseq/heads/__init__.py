"""Output heads for any PyTorch model. Depends on torch only."""

from mhe_fairseq.heads.base import Candidates, HeadLoss, OutputHead
from mhe_fairseq.heads.cascade import CascadeHead
from mhe_fairseq.heads.product import ProductHead
from mhe_fairseq.heads.sampling import SamplingHead
from mhe_fairseq.heads.sharded_cascade import ShardedCascadeHead
from mhe_fairseq.heads.sharded_sampling import ShardedSamplingHead
from mhe_fairseq.heads.shards import Shard
from mhe_fairseq.heads.softmax import SoftmaxHead

__all__ = [
    "Candidates",
    "CascadeHead",
    "HeadLoss",
    "OutputHead",
    "ProductHead",
    "SamplingHead",
    "Shard",
    "ShardedCascadeHead",
    "ShardedSamplingHead",
    "SoftmaxHead",
]
