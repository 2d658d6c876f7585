"""fairseq models with a multi-head encoding output layer; importing registers them."""

from mhe_fairseq.models.transformer import MHETransformerModel

__all__ = ["MHETransformerModel"]
