"""Tokens <-> digits. Depends on torch only."""

from mhe_fairseq.coding.codebook import Codebook, symbols_fingerprint
from mhe_fairseq.coding.plan import parse_lengths, plan_lengths

__all__ = ["Codebook", "parse_lengths", "plan_lengths", "symbols_fingerprint"]
