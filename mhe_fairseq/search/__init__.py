"""Beam search that reads a head's best tokens, not the whole vocabulary."""

from mhe_fairseq.search.generator import CompactGenerator, CompactGeneratorWithAlignment

__all__ = ["CompactGenerator", "CompactGeneratorWithAlignment"]
