"""What two dictionaries share, and what a new symbol is made of."""

from __future__ import annotations

import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding.symbols import is_padding, trace

SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]


def made_of(old: list[str], new: str) -> list[str]:
    origins = trace([*SPECIAL, *old], [*SPECIAL, new])
    return [([*SPECIAL, *old])[token] for token in origins.pieces.get(4, [])]


@pytest.mark.parametrize(
    ("old", "new", "pieces"),
    [
        # sentencepiece: the fewest, and of as many the longer first one.
        (["▁", "▁a", "b", "c", "bc", "▁ab"], "▁abc", ["▁ab", "c"]),
        (["▁", "▁a", "b", "c", "bc"], "▁abc", ["▁a", "bc"]),
        (["▁a", "b"], "▁abx", []),
        # subword-nmt: only what goes on may be followed.
        (["a@@", "b", "b@@", "ab@@", "c"], "abc", ["ab@@", "c"]),
        (["a@@", "b", "b@@", "c"], "ab", ["a@@", "b"]),
        (["a@@", "b", "b@@", "c"], "ab@@", ["a@@", "b@@"]),
        (["a@@", "b", "c@@"], "ba", []),
        # A mark at the word's end.
        (["a", "b</w>", "a</w>", "b"], "bab</w>", ["b", "a", "b</w>"]),
        # Words are not made of words, nor numbers of numbers, nor anything of special symbols.
        (["to", "day"], "today", []),
        (["12", "3"], "123", []),
        (["▁x", "<"], "<s></s>", []),
    ],
)
def test_pieces(old: list[str], new: str, pieces: list[str]) -> None:
    assert made_of(old, new) == pieces


@given(seed=st.integers(0, 9999))
def test_pieces_spell_their_symbol_and_are_as_few_as_can_be(seed: int) -> None:
    rng = random.Random(seed)
    old = sorted({"▁", *("".join(rng.choices("ab▁", k=rng.randint(1, 3))) for _ in range(6))})
    new = "".join(rng.choices("ab▁", k=rng.randint(1, 7)))
    found = [] if new in old else made_of(old, new)
    if found:
        assert "".join(found) == new
    assert len(found) == (0 if new in old else fewest(new, old))


def fewest(text: str, known: list[str]) -> int:
    """By trying everything; 0: there is no way."""
    ways = [[""]]
    for count in range(1, len(text) + 1):
        ways.append([done + piece for done in ways[-1] for piece in known if text.startswith(done + piece)])
        if text in ways[-1]:
            return count
    return 0


@given(seed=st.integers(0, 9999))
def test_what_stays_and_what_goes(seed: int) -> None:
    rng = random.Random(seed)
    old = rng.sample(string.ascii_letters, rng.randint(1, 40))
    new = rng.sample(string.ascii_letters, rng.randint(1, 40))
    origins = trace(old, new, special=0)
    assert {new[token]: old[origins.old[token]] for token in origins.kept.tolist()} == {
        symbol: symbol for symbol in set(old) & set(new)
    }
    assert {new[token] for token in origins.new.tolist()} == set(new) - set(old)
    assert {old[token] for token in origins.gone.tolist()} == set(old) - set(new)
    assert origins.changes_nothing == (old == new)
    assert trace(old, old).changes_nothing


def test_symbols_that_pad_a_dictionary() -> None:
    assert is_padding("madeupword0007")
    assert not is_padding("madeupword")
    assert not is_padding("▁madeupword0007")
