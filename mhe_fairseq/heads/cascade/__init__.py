"""MHC: a distribution over groups of tokens, then one over the tokens of a group."""

from mhe_fairseq.heads.cascade.head import CascadeHead

__all__ = ["CascadeHead"]
