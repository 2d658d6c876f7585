"""MHS: the full soft-max, trained on the gold group and a few sampled groups."""

from mhe_fairseq.heads.sampling.head import SamplingHead, default_groups

__all__ = ["SamplingHead", "default_groups"]
