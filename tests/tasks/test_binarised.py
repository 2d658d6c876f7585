"""Binarised text, read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mhe_fairseq.tasks.binarised import CHUNK, BinarisedText


@pytest.mark.parametrize("implementation", ["mmap", "lazy"])
def test_text_is_read_whole_whatever_its_format(
    implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.data.indexed_dataset import make_builder

    monkeypatch.setattr("mhe_fairseq.tasks.binarised.CHUNK", 5)
    prefix = str(tmp_path / "train")
    builder = make_builder(prefix + ".bin", implementation, vocab_size=50)
    sentences = [[4, 9, 2], [7, 2], [5, 6, 8, 4, 4, 2], [2]]
    for sentence in sentences:
        builder.add_item(torch.tensor(sentence))
    builder.finalize(prefix + ".idx")
    text = BinarisedText([prefix])
    flat = [token for sentence in sentences for token in sentence]
    assert text.tokens == len(flat)
    for _ in range(2):
        chunks = list(text)
        assert len(chunks) > 1 and all(chunk.dtype == np.int64 for chunk in chunks)
        assert np.concatenate(chunks).tolist() == flat
    assert CHUNK > 5
