"""Targets that stand in the source sentence, apart from the others."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given

from mhe_fairseq.analysis.bands import Bands
from mhe_fairseq.analysis.loss_parts import LossParts
from mhe_fairseq.analysis.summary import summarise
from mhe_fairseq.coding import Codebook
from tests.analysis.cases import batch, codebooks, counts, seeds


@given(book=codebooks(), count=counts, seed=seeds)
def test_both_kinds_add_up_to_the_bands(book: Codebook, count: int, seed: int) -> None:
    log_probs, target = batch(count, len(book), seed)
    in_source = torch.rand(count, generator=torch.Generator().manual_seed(seed)) < 0.5
    parts = LossParts(book)
    # In two batches, as well as in one.
    parts.update(log_probs[: count // 2], target[: count // 2], in_source[: count // 2])
    parts.update(log_probs[count // 2 :], target[count // 2 :], in_source[count // 2 :])
    found = summarise(parts, Bands(torch.ones(len(book), dtype=torch.long), eos=0), top=1)
    bands = {row.band: row for row in found.bands}
    assert [row.band for row in found.copied] == [name for name in bands if name != "EOS"]
    for row in found.copied:
        band = bands[row.band]
        assert row.tokens + row.other_tokens == band.tokens
        lost = row.tokens * (row.loss or 0) + row.other_tokens * (row.other_loss or 0)
        assert lost == pytest.approx(band.tokens * (band.loss or 0), abs=1e-9)
        right = row.tokens * (row.recall or 0) + row.other_tokens * (row.other_recall or 0)
        assert right == pytest.approx(band.tokens * (band.recall or 0), abs=1e-9)
    copied = in_source & (target != 0)
    loss = -log_probs.double().gather(1, target[:, None]).squeeze(1)
    assert sum(row.tokens for row in found.copied) == int(copied.sum())
    assert sum(row.tokens * (row.loss or 0) for row in found.copied) == pytest.approx(
        float(loss[copied].sum()), abs=1e-9
    )


def test_where_it_is_not_known_there_is_nothing_to_tell() -> None:
    parts = LossParts(Codebook((2, 2), vocab_size=3))
    parts.update(*batch(4, 3, 1))
    assert summarise(parts, Bands(torch.ones(3, dtype=torch.long), eos=0), top=1).copied == []
