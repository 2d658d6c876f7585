"""MHP: distributions over the digits of a token, their product, and mixtures of products."""

from mhe_fairseq.heads.product.head import ProductHead

__all__ = ["ProductHead"]
