"""`mhe assign --labels`: what it refuses; the codebook itself is tested with prepare_multilabel.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from mhe_fairseq.cli.main import main


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "has no input0/dict.txt; --labels reads documents with labels"),
        (["--shortlist", "4"], "--shortlist is about tokens of text; with --labels leave it out"),
        (["--add-symbol", "<mask>"], "--add-symbol is about tokens of text"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], said: str) -> None:
    line = ["assign", "--labels", "--data", str(tmp_path), "-o", str(tmp_path / "codes"), *flags]
    assert main(line) == 1
    assert said in capsys.readouterr().err
    assert not (tmp_path / "codes").exists()
