"""A codebook follows its dictionary: who stays sits still, who is new sits with its like."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from mhe_fairseq.coding.assign import context_vectors, count_tokens
from mhe_fairseq.coding.regrow import regrow
from mhe_fairseq.coding.symbols import Origins, trace
from tests.heads.oracle import codebooks
from tests.heads.regrown import kept_of, origins_of


@given(data=st.data(), seed=st.integers(0, 99), knows=st.booleans())
def test_who_stays_keeps_its_slot_and_lengths_grow_only_when_they_must(
    data: st.DataObject, seed: int, knows: bool
) -> None:
    book = data.draw(codebooks(80, 1, 3))
    origins = data.draw(origins_of(len(book), most_new=60))
    vocab = len(origins.old)
    vectors = np.random.default_rng(seed).standard_normal((vocab, 5)).astype(np.float32) if knows else None
    grown = regrow(book, origins, vectors, dictionary="of-the-new-one")
    assert (len(grown), grown.dictionary) == (vocab, "of-the-new-one")
    before, after = kept_of(book, grown, origins)
    assert torch.equal(before, after)
    assert grown.lengths[:-1] == book.lengths[:-1]
    if grown.lengths == book.lengths:
        assert torch.equal(grown.slots[origins.kept], book.slots[origins.old[origins.kept]])
        return
    # One less, and there were too few slots outside of first digits of one token.
    first = book.digits(torch.arange(len(book)))[:, 0]
    sizes = torch.bincount(first, minlength=book.lengths[0])
    alone = sizes == 1 if book.heads > 1 and not bool((sizes == 1).all()) else torch.zeros_like(sizes).bool()
    is_alone = alone[before[:, 0]]
    fewer = (grown.lengths[-1] - 1) * math.prod(book.lengths[1:-1]) * int((~alone).sum())
    fewer = fewer if book.heads > 1 else grown.lengths[-1] - 1
    free = int(alone.sum()) - int(is_alone.sum())
    assert len(origins.new) - free > fewer - int((~is_alone).sum())


@given(data=st.data())
def test_a_token_by_itself_stays_by_itself(data: st.DataObject) -> None:
    book = Codebook((6, 4), torch.tensor([0, 4, 8, 12, 13, 14, 16, 17, 20]))
    origins = data.draw(origins_of(len(book)))
    grown = regrow(book, origins)
    first = grown.digits(torch.arange(len(grown)))[:, 0]
    for digit in (0, 1, 2, 5):
        assert int((first == digit).sum()) <= 1


def test_new_words_join_those_that_are_used_as_they_are() -> None:
    """Numbers follow "of", colours follow "in": so do the new ones, and each group has room."""
    old = ["<s>", "<pad>", "</s>", "<unk>", "of", "in", "one", "two", "three", "red", "blue", "green"]
    new = [*old[:6], "yellow", *old[6:], "four", "black"]
    book = Codebook((3, 6), torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13, 14]))
    origins = trace(old, new)
    number = {symbol: token for token, symbol in enumerate(new)}
    rng = np.random.default_rng(1)
    text = []
    for _ in range(600):
        which = ["of", str(rng.choice(["one", "two", "three", "four"]))]
        if rng.random() < 0.5:
            which = ["in", str(rng.choice(["red", "blue", "green", "yellow", "black"]))]
        text += [number[word] for word in [*which, "</s>"]]
    stream = [np.array(text)]
    counts = count_tokens(stream, len(new))
    vectors = context_vectors(stream, counts, dim=8)
    grown = regrow(book, origins, vectors, counts, symbols_fingerprint(new))
    groups = grown.digits(torch.arange(len(new)))[:, 0].tolist()
    assert {symbol: groups[number[symbol]] for symbol in ("four", "yellow", "black")} == {
        "four": 1, "yellow": 2, "black": 2,
    }  # fmt: skip
    assert grown.lengths == book.lengths


def test_the_place_of_a_symbol_that_is_gone_is_free() -> None:
    book = Codebook((2, 2))
    grown = regrow(book, Origins(torch.tensor([3, -1, 0, 2]), {}, 4))
    assert grown.lengths == (2, 2)
    assert grown.slots.tolist() == [3, 1, 0, 2]
