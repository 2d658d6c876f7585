"""What the studies of `mhe convert` read of its commands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from scripts.study.study_config import StudyError
from scripts.study.trained_on import printed_line, validated_bits, with_flags


def test_what_the_commands_said(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text('... "valid_nll_loss": "9.5"}\n... {"epoch": 1, "valid_nll_loss": "8.25"}\n')
    assert validated_bits(log) == 8.25
    with pytest.raises(StudyError, match="does not end with a fairseq-train command"):
        printed_line(log)
    log.write_text(
        "grown.pt: ...\nto train it on:\n  fairseq-train data --lr 1 --adam-betas '(0.9, 0.98)'\n\n"
    )
    line = printed_line(log)
    assert with_flags(line, lr="2", adam_betas=None) == ["fairseq-train", "data", "--lr", "2"]
    log.write_text(json.dumps({}))
    with pytest.raises(StudyError, match="no loss of a validation"):
        validated_bits(log)
