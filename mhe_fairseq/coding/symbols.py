"""Which symbols two dictionaries share, and what old symbols a new one is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

#: A dictionary follows a convention when at least this share of its symbols shows it.
_SHARE = 0.01

#: Ends a word that is written without a mark, where all other pieces of words have one.
_END = "\0"


@dataclass(frozen=True)
class Origins:
    """Where the symbols of a new dictionary come from.

    Attributes:
        old: (V',) long: the same symbol's number in the old dictionary, -1 where it has none.
        pieces: new token -> the old tokens that its symbol is made of; new symbols that are made of no known
            ones are not in it.
        old_size: V, symbols of the old dictionary.
    """

    old: Tensor
    pieces: dict[int, list[int]]
    old_size: int

    @cached_property
    def kept(self) -> Tensor:
        """New tokens whose symbols are in the old dictionary, rising. Shape: (kept,) long."""
        return (self.old >= 0).nonzero().squeeze(-1)

    @cached_property
    def new(self) -> Tensor:
        """The others, rising. Shape: (V' - kept,) long."""
        return (self.old < 0).nonzero().squeeze(-1)

    @cached_property
    def gone(self) -> Tensor:
        """Old tokens whose symbols the new dictionary does not have, rising. Shape: (gone,) long."""
        is_gone = torch.ones(self.old_size, dtype=torch.bool)
        is_gone[self.old[self.kept]] = False
        return is_gone.nonzero().squeeze(-1)

    @property
    def changes_nothing(self) -> bool:
        """The two dictionaries are the same, in the same order."""
        return self.old.tolist() == list(range(self.old_size))


def trace(old: Sequence[str], new: Sequence[str], special: int = 4) -> Origins:
    """Compare two dictionaries by their symbols.

    A new symbol is divided into the fewest old symbols, longer ones first where several ways need as many.
    How pieces of words are marked is seen from the old dictionary: as sentencepiece does (``▁`` begins a
    word), subword-nmt (``@@`` ends a piece that goes on) or with ``</w>``. A dictionary of whole words has no
    pieces, nor has one of numbers that stand for pieces (GPT-2's).

    Args:
        old, new: symbols in order, each once in its dictionary.
        special: that many symbols at the beginning of ``old`` are pieces of nothing.
    """
    number = {symbol: token for token, symbol in enumerate(old)}
    found = [number.get(symbol, -1) for symbol in new]
    pieces = {}
    if _has_pieces(old):
        goes_on = _shows(old, lambda symbol: symbol.endswith("@@"))
        known = {_spelt(symbol, goes_on): token for token, symbol in enumerate(old) if token >= special}
        known.pop("", None)
        longest = max(map(len, known), default=0)
        for token, symbol in enumerate(new):
            if found[token] < 0 and (parts := _divide(_spelt(symbol, goes_on), known, longest)):
                pieces[token] = parts
    return Origins(torch.tensor(found, dtype=torch.long), pieces, len(old))


def is_padding(symbol: str) -> bool:
    """Whether it is one of those that fairseq-preprocess pads a dictionary with, to a multiple of 8."""
    return symbol.startswith("madeupword") and symbol.removeprefix("madeupword").isdecimal()


def _has_pieces(symbols: Sequence[str]) -> bool:
    return _shows(symbols, lambda symbol: symbol.endswith(("@@", "</w>")) or "▁" in symbol)


def _shows(symbols: Iterable[str], test: Callable[[str], bool]) -> bool:
    marks = [test(symbol) for symbol in symbols]
    return sum(marks) >= max(1, _SHARE * len(marks))


def _spelt(symbol: str, goes_on: bool) -> str:
    """A symbol as a string that is those of its pieces one after the other."""
    if not goes_on:
        return symbol
    return symbol[:-2] if symbol.endswith("@@") else symbol + _END


def _divide(text: str, known: dict[str, int], longest: int) -> list[int]:
    """The fewest known strings that make ``text``; none where there is no way."""
    # best[i]: (pieces, the first one's end) of text[i:].
    best: list[tuple[int, int] | None] = [None] * len(text) + [(0, 0)]
    for begin in range(len(text) - 1, -1, -1):
        for end in range(min(len(text), begin + longest), begin, -1):
            rest = best[end]
            current = best[begin]
            if rest is None or text[begin:end] not in known:
                continue
            if current is None or rest[0] + 1 < current[0]:
                best[begin] = (rest[0] + 1, end)
    parts, place = [], 0
    while place < len(text):
        step = best[place]
        if step is None:
            return []
        parts.append(known[text[place : step[1]]])
        place = step[1]
    return parts
