"""Whose languages are those of a checkpoint. Commands are in tests/tasks and tests/models."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from mhe_fairseq.fairseq_fixes.other_languages import languages_of, other_languages
from mhe_fairseq.models.options import pinned

MULTI, BART = "translation_multi_simple_epoch", "mhe_translation_from_pretrained_bart"


@pytest.mark.parametrize(
    ("args", "langs"),
    [
        (Namespace(task=MULTI, langs=["b", "a"], lang_pairs="a-b"), ["b", "a"]),
        (Namespace(task=MULTI, langs=None, lang_pairs="b-c,a-b"), ["a", "b", "c"]),
        (Namespace(task=MULTI, langs=None, lang_pairs=["a-b"], lang_dict="file"), None),
        (Namespace(task=f"mhe_{MULTI}", mhe_langs=["c", "a"], lang_dict="file"), ["c", "a"]),
        (Namespace(task=BART, langs="en_XX,de_DE"), ["en_XX", "de_DE"]),
        ({"_name": "multilingual_denoising", "langs": "b,a", "add_lang_token": True}, ["b", "a"]),
        ({"_name": "multilingual_denoising", "langs": "b,a", "add_lang_token": False}, None),
        (Namespace(task="multilingual_masked_lm", langs="a,b"), None),
        (Namespace(task="translation"), None),
        (None, None),
    ],
)
def test_languages(args: Any, langs: list[str] | None) -> None:
    assert languages_of(args) == langs


def task(*langs: str, **more: Any) -> Any:
    """Of these languages, whose dictionary has three words and their tokens."""
    dictionary = Dictionary()
    for symbol in ("x", "y", "z", *(f"[{lang}]" for lang in langs)):
        dictionary.add_symbol(symbol)
    args = Namespace(task=MULTI, langs=list(langs), lang_pairs="a-b", **more)
    return SimpleNamespace(args=args, target_dictionary=dictionary)


def saved(path: Path, of: Any, known: bool, rows: int | None = None) -> str:
    """A checkpoint of a task; ``known``: it keeps its dictionary, as ours do."""
    model = Namespace(**vars(of.args))
    if known:
        model.mhe_dictionary = pinned(of.target_dictionary.symbols)
    weights = {"decoder.embed_tokens.weight": torch.zeros(rows or len(of.target_dictionary), 2)}
    torch.save({"cfg": {"model": model, "task": of.args}, "model": weights}, path)
    return str(path)


@pytest.mark.parametrize("known", [True, False])
def test_another_list(known: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.pt", task("a", "b"), known)
    assert other_languages(path, task("a", "b")) is None
    for langs in ("b,a", "a,b,c"):
        assert other_languages(path, task(*langs.split(","))) == (
            f"the checkpoint was trained with the languages a,b and here they are {langs}; "
            "each has a token in the dictionary, so give --langs a,b"
        )


def test_one_dictionary_all_the_same(tmp_path: Path) -> None:
    """It had the tokens already, so they are not in the order of the list."""
    mine = task("a", "b", fixed_dictionary="dict.txt")
    other = task("b", "a", fixed_dictionary="dict.txt")
    other.target_dictionary = mine.target_dictionary
    for known in (True, False):
        assert other_languages(saved(tmp_path / "a.pt", mine, known), other) is None


def test_what_cannot_be_told(tmp_path: Path) -> None:
    """Other names, as many: whether they are the same languages is not for us to say."""
    path = saved(tmp_path / "a.pt", task("a", "b"), known=False)
    assert other_languages(path, task("a_XX", "b_XX")) is None
    (tmp_path / "bad.pt").write_text("no checkpoint")
    for name in ("bad.pt", "missing.pt"):
        assert other_languages(str(tmp_path / name), task("b", "a")) is None
    assert other_languages(path, SimpleNamespace(args=Namespace(task="translation"))) is None
    assert other_languages(path, None) is None
