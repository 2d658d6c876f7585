"""Codebook: digits and tokens are each other's inverse, and a bad file is refused with a sentence."""

from __future__ import annotations

import math
import os
import random
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.errors import MHEError

SLOTS = torch.tensor([5, 0, 7, 2, 11])


def hand_digits(slot: int, lengths: tuple[int, ...]) -> list[int]:
    """Mixed radix: the weight of a digit is the product of the lengths after it."""
    digits = []
    for h in range(len(lengths)):
        weight = math.prod(lengths[h + 1 :])
        digits.append(slot // weight)
        slot -= digits[-1] * weight
    return digits


@st.composite
def grids(draw: st.DrawFn) -> tuple[tuple[int, ...], list[int]]:
    """Lengths of 1 to 4 digits and the slots of V tokens, holes anywhere."""
    lengths = tuple(draw(st.lists(st.integers(1, 7), min_size=1, max_size=4)))
    size = math.prod(lengths)
    vocab = draw(st.integers(1, size))
    return lengths, random.Random(draw(st.integers(0, 9999))).sample(range(size), vocab)


@given(grid=grids())
def test_digits_and_tokens_are_inverse(grid: tuple[tuple[int, ...], list[int]]) -> None:
    lengths, slots = grid
    book = Codebook(lengths, torch.tensor(slots))
    digits = book.digits(torch.arange(len(book)))
    assert digits.tolist() == [hand_digits(slot, lengths) for slot in slots]
    assert book.tokens(digits).tolist() == list(range(len(slots)))
    token_of_slot = {slot: token for token, slot in enumerate(slots)}
    everything = torch.tensor([hand_digits(slot, lengths) for slot in range(math.prod(lengths))])
    assert book.tokens(everything).tolist() == [
        token_of_slot.get(slot, -1) for slot in range(math.prod(lengths))
    ]
    assert (len(book), book.heads, book.size) == (len(slots), len(lengths), math.prod(lengths))
    assert book.holes == book.size - len(book)


def test_a_small_example_by_hand() -> None:
    book = Codebook((3, 4), SLOTS)
    expected = [[1, 1], [0, 0], [1, 3], [0, 2], [2, 3]]  # 5 = 1*4+1, 0, 7 = 1*4+3, 2, 11 = 2*4+3
    assert book.digits(torch.arange(5)).tolist() == expected
    assert book.token_of_slot.tolist() == [1, -1, 3, -1, -1, 0, -1, 2, -1, -1, -1, 4]
    assert book.tokens(torch.tensor([[[2, 3], [2, 2]], [[0, 1], [1, 1]]])).tolist() == [[4, -1], [-1, 0]]
    assert book.digits(torch.tensor([[4], [1]])).tolist() == [[[2, 3]], [[0, 0]]]
    assert repr(book) == f"Codebook(3x4, 5 tokens, 7 holes, {book.fingerprint})"
    assert book.digits(torch.empty(0, dtype=torch.long)).shape == (0, 2)


def test_without_slots_tokens_are_in_dictionary_order() -> None:
    assert Codebook((3, 4), vocab_size=10).slots.tolist() == list(range(10))
    assert Codebook((3, 4)).slots.tolist() == list(range(12))


def test_the_codebook_keeps_its_own_copy_of_the_slots() -> None:
    slots = SLOTS.clone()
    book = Codebook((3, 4), slots)
    slots[0] = 99
    assert book.slots.tolist() == SLOTS.tolist()


def test_fingerprint_and_equality_change_with_slots_and_lengths() -> None:
    book = Codebook((3, 4), SLOTS)
    same = Codebook([3, 4], SLOTS.int(), dictionary="abc")
    assert same == book and same.fingerprint == book.fingerprint and len(book.fingerprint) == 16
    swapped = SLOTS[torch.tensor([1, 0, 2, 3, 4])]
    others = [
        Codebook((4, 3), SLOTS),
        Codebook((12,), SLOTS),
        Codebook((3, 5), SLOTS),
        Codebook((3, 4), swapped),
        Codebook((3, 4), SLOTS[:4]),
    ]
    assert len({b.fingerprint for b in [book, *others]}) == 6
    assert all(other != book for other in others)
    assert book != "a codebook"


def test_symbols_fingerprint_pins_symbols_and_their_order() -> None:
    prints = [symbols_fingerprint(s) for s in (["a", "b"], ["b", "a"], ["ab"], ["a", "b", "c"], ["\udc80"])]
    assert len(set(prints)) == 5
    assert symbols_fingerprint(iter(["a", "b"])) == prints[0]
    assert all(len(p) == 16 for p in prints)


@given(grid=grids())
def test_save_and_load(
    tmp_path_factory: pytest.TempPathFactory, grid: tuple[tuple[int, ...], list[int]]
) -> None:
    lengths, slots = grid
    book = Codebook(lengths, torch.tensor(slots), dictionary="0123456789abcdef")
    path = tmp_path_factory.mktemp("book") / "code.pt"
    book.save(path)
    loaded = Codebook.load(str(path))
    assert loaded == book and loaded.fingerprint == book.fingerprint
    assert loaded.dictionary == book.dictionary
    assert loaded.slots.dtype == torch.long
    assert os.listdir(path.parent) == ["code.pt"]


@pytest.mark.parametrize("step", ["torch.save", "os.replace"])
def test_a_failing_save_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    path = tmp_path / "code.pt"
    Codebook((3, 4), SLOTS).save(path)
    before = path.read_bytes()

    def fail(state: Any, target: Any) -> None:
        if step == "torch.save":
            Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(step, fail)
    with pytest.raises(OSError, match="disk full"):
        Codebook((2, 2)).save(path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["code.pt"]


@pytest.mark.parametrize(
    ("lengths", "slots", "sentence"),
    [
        ((3, 4), [0, 5, 2, 5], "slot 5 is given to two tokens, 1 and 3; every token needs a slot of its own"),
        ((3, 4), [0, 12], "token 1 has slot 12, but lengths 3,4 have slots 0..11 only"),
        ((3, 4), [0, 3, -2], "token 2 has slot -2, but lengths 3,4 have slots 0..11 only"),
        ((1, 3), [0, 1, 2, 3], "lengths 1,3 give 3 slots for 4 tokens; their product must be at least 4"),
        ((3, 4), [], r"slots must be a list of at least one number, got shape (0,)"),
        ((3, 4), [[0, 1]], r"slots must be a list of at least one number, got shape (1, 2)"),
        ((0, 4), [0], "every length must be at least 1, got '0,4'"),
    ],
)
def test_bad_slots_are_refused(lengths: tuple[int, ...], slots: list[Any], sentence: str) -> None:
    with pytest.raises(MHEError) as caught:
        Codebook(lengths, torch.tensor(slots))
    assert str(caught.value).startswith(sentence)


def test_a_vocabulary_size_that_does_not_fit_is_refused() -> None:
    with pytest.raises(MHEError, match="slots for 5 tokens were given for a vocabulary of 6"):
        Codebook((3, 4), SLOTS, vocab_size=6)
    with pytest.raises(MHEError, match="lengths 3,4 give 12 slots for 13 tokens"):
        Codebook((3, 4), vocab_size=13)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    assert str(caught.value) == f"there is no codebook file {path}; `mhe assign` writes one"
    with pytest.raises(MHEError, match="there is no codebook file"):
        Codebook.load(tmp_path)


def check_damaged(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    message = str(caught.value)
    assert message.startswith(f"codebook file {path} is damaged or not a codebook ({len(content)} bytes, ")
    assert message.endswith("); write it again") and "\n" not in message


def test_a_truncated_file_at_every_few_bytes(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    Codebook((3, 4), SLOTS).save(path)
    whole = path.read_bytes()
    for count in range(0, len(whole) - 1, 31):
        check_damaged(path, whole[:count])


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0",
        b"PK\x03\x04",
        b"no codebook at all\n",
        b"\x80\x02",
        b"\xff" * 1000,
        b"J\0",
        b"G\0\0",
        b"]q",
    ],
    ids=repr,
)
def test_junk_bytes(tmp_path: Path, content: bytes) -> None:
    check_damaged(tmp_path / "code.pt", content)


@given(content=st.binary(max_size=60), protocol=st.sampled_from([b"", b"\x80\x02"]))
def test_any_junk_bytes(tmp_path_factory: pytest.TempPathFactory, content: bytes, protocol: bytes) -> None:
    path = tmp_path_factory.mktemp("junk") / "code.pt"
    path.write_bytes(protocol + content)
    with pytest.raises(MHEError, match="codebook"):
        Codebook.load(path)


def test_whatever_the_unpickler_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise struct.error("unpack requires a buffer of 4 bytes")

    monkeypatch.setattr(torch, "load", fail)
    path = tmp_path / "code.pt"
    path.write_bytes(b"junk")
    with pytest.raises(MHEError, match=r"is damaged or not a codebook \(4 bytes, error\); write it again"):
        Codebook.load(path)


def saved_state(path: Path) -> dict[str, Any]:
    Codebook((3, 4), SLOTS, dictionary="abc").save(path)
    state: dict[str, Any] = torch.load(path, weights_only=True)
    return state


@pytest.mark.parametrize(
    "state", [{"model": torch.zeros(2)}, {"format": "other"}, torch.zeros(3), [1], "text"]
)
def test_a_file_that_is_no_codebook(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "code.pt"
    torch.save(state, path)
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    assert str(caught.value) == f"{path} is not a codebook file; one written by Codebook.save was expected"


class Thing:
    """A class that weights_only does not allow."""


def test_a_file_with_a_python_object_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "code.pt"
    torch.save({**saved_state(path), "dictionary": Thing()}, path)
    with pytest.raises(MHEError, match="is damaged or not a codebook .*UnpicklingError"):
        Codebook.load(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"version": 2}, "codebook file {path} has version 2, this program reads 1"),
        ({"version": None}, "codebook file {path} has version None, this program reads 1"),
        (
            {"slots": torch.tensor([5, 0, 5])},
            "codebook file {path}: slot 5 is given to two tokens, 0 and 2; every token needs a slot of",
        ),
        (
            {"slots": torch.tensor([5, 12])},
            "codebook file {path}: token 1 has slot 12, but lengths 3,4 have slots 0..11 only",
        ),
        (
            {"slots": torch.tensor([-1, 5])},
            "codebook file {path}: token 0 has slot -1, but lengths 3,4 have slots 0..11 only",
        ),
        ({"lengths": [3, 0]}, "codebook file {path}: every length must be at least 1, got '3,0'"),
        ({"lengths": None}, "codebook file {path} lacks a part of a codebook ("),
    ],
)
def test_a_file_with_bad_content(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "code.pt"
    torch.save({**saved_state(path), **change}, path)
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    assert str(caught.value).startswith(sentence.format(path=path))


@pytest.mark.parametrize("part", ["lengths", "slots", "dictionary"])
def test_a_file_that_lacks_a_part(tmp_path: Path, part: str) -> None:
    path = tmp_path / "code.pt"
    state = saved_state(path)
    del state[part]
    torch.save(state, path)
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    assert str(caught.value) == f"codebook file {path} lacks a part of a codebook ('{part}')"


@pytest.mark.parametrize("change", [{"slots": SLOTS.flip(0)}, {"lengths": [4, 3]}, {"fingerprint": "0" * 16}])
def test_a_file_changed_after_it_was_written(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "code.pt"
    state = {**saved_state(path), **change}
    torch.save(state, path)
    content = Codebook(state["lengths"], state["slots"]).fingerprint
    with pytest.raises(MHEError) as caught:
        Codebook.load(path)
    assert str(caught.value) == (
        f"codebook file {path} was changed after it was written: its content has fingerprint {content}, "
        f"it says {state['fingerprint']}"
    )


def test_check_dictionary() -> None:
    book = Codebook((3, 4), SLOTS, dictionary="aaaa")
    book.check_dictionary("aaaa", 5)
    book.check_dictionary("", 5)
    Codebook((3, 4), SLOTS).check_dictionary("bbbb", 5)
    with pytest.raises(MHEError) as caught:
        book.check_dictionary("aaaa", 6)
    assert str(caught.value) == (
        "the codebook is for 5 tokens and the dictionary has 6; make it again from this dictionary"
    )
    with pytest.raises(MHEError) as caught:
        book.check_dictionary("bbbb", 5, name="code.pt")
    assert str(caught.value) == (
        "code.pt was made for another dictionary (fingerprint aaaa, this one has bbbb, both of 5 tokens); "
        "make it again from this dictionary"
    )


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_slots_of_any_whole_number_type(dtype: torch.dtype) -> None:
    slots: Tensor = SLOTS.to(dtype)
    assert Codebook((3, 4), slots).slots.dtype == torch.long
