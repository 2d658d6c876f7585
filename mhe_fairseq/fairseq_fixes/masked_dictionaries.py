"""The dictionaries of XLM and of fairseq's first BERT: ``translation_from_pretrained_xlm``,
``cross_lingual_lm``, ``legacy_masked_lm``.

``Dictionary.load`` asks its class for a dictionary with ``add_special_symbols``, which those two classes do
not take: every task that loads one ends in a TypeError. (``legacy_masked_lm`` cannot train all the same: its
``load_dataset`` does not take what fairseq's trainer gives it.)

Since fairseq 0.12.2, in which ``Dictionary.load`` got the argument. Can go when the classes take it.
"""

from __future__ import annotations

from typing import Any

from fairseq.data.legacy.masked_lm_dictionary import BertDictionary, MaskedLMDictionary

from mhe_fairseq.fairseq_fixes import wrap


def install() -> None:
    """Let both take the argument."""
    for kind in (MaskedLMDictionary, BertDictionary):
        wrap(kind, "__init__", _taking)


def _taking(stock: Any) -> Any:
    """A constructor that has its special symbols, as asked for; it cannot be without them."""

    def construct(self: Any, *args: Any, add_special_symbols: bool = True, **kwargs: Any) -> None:
        if not add_special_symbols:
            raise TypeError(f"{type(self).__name__} is made of special symbols, it cannot leave them out")
        stock(self, *args, **kwargs)

    return construct
