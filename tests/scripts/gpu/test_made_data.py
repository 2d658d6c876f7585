"""Made-up text is what fairseq reads, with the frequencies of words that it should have."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from fairseq.data import Dictionary, data_utils

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from scripts.gpu.made_data import Text, make


@pytest.mark.parametrize("pairs", [True, False])
def test_text_of_zipf(pairs: bool, tmp_path: Path) -> None:
    make(tmp_path, Text(500, (("train", 2000), ("test", 5)), 3, 9, pairs))
    ends = [".src-tgt.src", ".src-tgt.tgt"] if pairs else [""]
    dictionary = Dictionary.load(str(tmp_path / ("dict.tgt.txt" if pairs else "dict.txt")))
    assert len(dictionary) == 500
    book = Codebook.load(tmp_path / "codes")
    book.check_dictionary(symbols_fingerprint(dictionary.symbols), 500, "codes")
    sides = []
    for end in ends:
        assert len(data_utils.load_indexed_dataset(str(tmp_path / f"test{end}"), dictionary)) == 5
        sides.append([*data_utils.load_indexed_dataset(str(tmp_path / f"train{end}"), dictionary)])
        sentences = sides[-1]
        assert {len(each) for each in sentences} == set(range(4, 11))
        assert all(each[-1] == dictionary.eos() for each in sentences)
        words = torch.cat([each[:-1] for each in sentences]).long()
        assert int(words.min()) == dictionary.nspecial and int(words.max()) < 500
        counts = torch.bincount(words, minlength=500)
        # The first word is four times as frequent as the fourth; some 1,770 of 12,000 words.
        assert 3 < counts[4] / counts[7] < 5.5 and 0.12 < counts[4] / len(words) < 0.18
    if pairs:
        assert [len(each) for each in sides[0]] == [len(each) for each in sides[1]]
        assert not all(torch.equal(a, b) for a, b in zip(*sides, strict=True))


def test_a_vocabulary_of_half_precision_indices_and_more(tmp_path: Path) -> None:
    """Files of tokens have two bytes a token, or four where V asks for these."""
    make(tmp_path, Text(70_000, (("train", 3000),), 3, 9))
    dictionary = Dictionary.load(str(tmp_path / "dict.src.txt"))
    sentences = [*data_utils.load_indexed_dataset(str(tmp_path / "train.src-tgt.src"), dictionary)]
    assert int(torch.cat(sentences).max()) > 2**16 - 1
