"""A checkpoint's rows beside the dictionary it is read with."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from mhe_fairseq.cli.analyze_model import _check_rows
from mhe_fairseq.errors import MHEError


def words(*added: str) -> Dictionary:
    """Ten symbols, and those that a task adds."""
    dictionary = Dictionary()
    for symbol in (*map(str, range(6)), *added):
        dictionary.add_symbol(symbol)
    return dictionary


def check(arch: str, rows: int, dictionary: Dictionary) -> None:
    table = torch.zeros(rows, 2)
    state: dict[str, Any] = {
        "cfg": SimpleNamespace(model=Namespace(_name=arch)),
        "model": {"encoder.embed_tokens.weight": table, "decoder.output_projection.weight": table},
    }
    task = SimpleNamespace(source_dictionary=dictionary, target_dictionary=dictionary)
    _check_rows(state, task, Path("CKPT"), "BIN")


def test_what_fits() -> None:
    check("bart_base", 13, words("[en]", "[de]", "<mask>"))
    check("transformer", 10, words())
    # fairseq's BART leaves the row of <mask> out, where the task adds none.
    check("bart_base", 11, words())
    check("mhe_mbart_large", 11, words())


@pytest.mark.parametrize(
    ("arch", "rows", "added", "said"),
    [
        ("transformer", 11, [], "is for 11 tokens and the dictionary in BIN has 10; give the data"),
        ("bart_base", 12, [], "is for 12 tokens and the dictionary in BIN has 10; give the data"),
        ("bart_base", 12, ["<mask>"], "has 11, <mask> of the task among them; give the data"),
        (
            "mbart_base",
            14,
            ["[en]", "[de]", "<mask>"],
            r"is for 14 tokens and the dictionary in BIN has 13, \[en\] \[de\] <mask> of the task among",
        ),
    ],
)
def test_what_does_not(arch: str, rows: int, added: list[str], said: str) -> None:
    with pytest.raises(MHEError, match=said):
        check(arch, rows, words(*added))
