"""Where binarised text lies."""

from __future__ import annotations

from pathlib import Path

from mhe_fairseq.cli.data import DataDirectory


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
