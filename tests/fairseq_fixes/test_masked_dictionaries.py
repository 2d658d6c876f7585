"""Dictionaries of fairseq's XLM and of its first BERT can be read."""

from __future__ import annotations

from pathlib import Path

import pytest
from fairseq.data.legacy.masked_lm_dictionary import BertDictionary, MaskedLMDictionary

import mhe_fairseq  # noqa: F401  (installs the repair)
from mhe_fairseq.fairseq_fixes import masked_dictionaries


@pytest.mark.parametrize(
    ("kind", "special"),
    [(MaskedLMDictionary, ["<mask>"]), (BertDictionary, ["<mask>", "<cls>", "<sep>"])],
)
def test_a_dictionary_is_read(kind: type[MaskedLMDictionary], special: list[str], tmp_path: Path) -> None:
    (tmp_path / "dict.txt").write_text("a 3\nb 2\n")
    masked_dictionaries.install()
    words = kind.load(str(tmp_path / "dict.txt"))
    assert words.symbols == ["<s>", "<pad>", "</s>", "<unk>", *special, "a", "b"]
    assert words.mask() == 4 and words.nspecial == 4 + len(special)
    assert type(kind(mask="?")) is kind and kind(mask="?").symbols[4] == "?"
    with pytest.raises(TypeError, match="is made of special symbols, it cannot leave them out"):
        kind.load(str(tmp_path / "dict.txt"), add_special_symbols=False)
