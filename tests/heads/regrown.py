"""Dictionaries that change, and heads that follow them."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.symbols import Origins


@st.composite
def origins_of(draw: st.DrawFn, vocab: int, most_new: int = 30, stays: bool = False) -> Origins:
    """Of a new dictionary of other tokens in another order: some are gone and some are new, of pieces or not.

    Args:
        vocab: V of the old one.
        most_new: how many new ones there may be.
        stays: nothing is gone and nothing new.
    """
    seed = draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    kept = vocab if stays else draw(st.integers(1, vocab))
    new = 0 if stays else draw(st.integers(0, most_new))
    old = torch.cat([torch.randperm(vocab, generator=generator)[:kept], torch.full((new,), -1)])
    old = old[torch.randperm(len(old), generator=generator)]
    pieces = {}
    for token in (old < 0).nonzero().squeeze(-1).tolist():
        if draw(st.booleans()):
            pieces[token] = torch.randint(vocab, (draw(st.integers(1, 3)),), generator=generator).tolist()
    return Origins(old, pieces, vocab)


def kept_of(book: Codebook, grown: Codebook, origins: Origins) -> tuple[torch.Tensor, torch.Tensor]:
    """Digits of the tokens that stay, before and after. Shape: (kept, H) each."""
    return book.digits(origins.old[origins.kept]), grown.digits(origins.kept)
