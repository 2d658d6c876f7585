"""Binarised text, read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mhe_fairseq.cli.data import CHUNK, BinarisedText, DataDirectory


@pytest.mark.parametrize("implementation", ["mmap", "lazy"])
def test_text_is_read_whole_whatever_its_format(
    implementation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fairseq.data.indexed_dataset import make_builder

    monkeypatch.setattr("mhe_fairseq.cli.data.CHUNK", 5)
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


def test_texts_of_several_languages_lie_in_a_folder_each(tmp_path: Path) -> None:
    """As multilingual_denoising has them; a text beside the dictionary is the text."""
    (tmp_path / "dict.txt").write_text("a 1\n")
    for lang in ("en", "de"):
        (tmp_path / lang).mkdir()
        for name in ("train.idx", "valid.idx", "train.bin"):
            (tmp_path / lang / name).touch()
    data = DataDirectory(str(tmp_path), None)
    assert data.lang is None and data.dictionary == tmp_path / "dict.txt"
    assert data.text_prefixes() == [str(tmp_path / lang / "train") for lang in ("de", "en")]
    (tmp_path / "train.idx").touch()
    assert DataDirectory(str(tmp_path), None).text_prefixes() == [str(tmp_path / "train")]
