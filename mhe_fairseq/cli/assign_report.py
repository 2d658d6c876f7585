"""What `mhe assign` says of the codebook that it made."""

from __future__ import annotations

import argparse
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.text import Text
from torch import Tensor

from mhe_fairseq.coding import Codebook
from mhe_fairseq.coding.assign import Ints

#: Share of a language's text whose groups are counted apart: the rest is names, numbers and mistakes.
_MOST = 0.99

#: Groups, and tokens of each, that the report shows.
_EXAMPLES = (5, 10)


class Assigned(NamedTuple):
    """Slots, and what they were made of.

    Attributes:
        slots: (V,) long.
        counts: (V,) of the text, where it was read.
        source: what they were made of, in words.
        by_language: language -> (V,) counts of its text, where there are several.
    """

    slots: Tensor
    counts: Ints | None
    source: str
    by_language: dict[str, Ints] = {}


def report(
    book: Codebook, symbols: list[str], made: Assigned, args: argparse.Namespace, seconds: float
) -> None:
    """Say what was made; show groups, so that a person can judge whether they make sense."""
    console = Console(highlight=False, soft_wrap=True)
    counts = made.counts
    width = book.size // book.lengths[0]
    # A shortlist's tokens are groups of one, and nothing to judge.
    groups = book.token_of_slot.view(book.lengths[0], width)[args.shortlist or 0 :]
    sizes = (groups >= 0).sum(dim=1)
    shape = " x ".join(f"{length:,}" for length in book.lengths)
    console.print(
        f"{args.output}: {len(book):,} tokens in {shape} = {book.size:,} slots, {book.holes:,} holes"
    )
    console.print(f"  {made.source}")
    console.print(f"  groups of {int(sizes.min()):,} to {int(sizes.max()):,} tokens")
    console.print(f"  fingerprint {book.fingerprint}, of the dictionary {book.dictionary}")
    console.print(f"  {seconds:.1f} seconds")
    if made.by_language:
        _show_languages(console, book, made.by_language)
    number, shown = _EXAMPLES
    known = [g for g in range(len(groups)) if int(sizes[g])]
    if counts is not None:
        # Of the half that makes up most of the text: people know its words.
        heaviest = sorted(known, key=lambda g: -int(counts[_tokens(groups[g])].sum()))
        known = sorted(heaviest[: max(number, len(known) // 2)])
    picked = sorted({known[round(i * (len(known) - 1) / (number - 1))] for i in range(number)})
    console.print("examples:")
    for group in picked:
        tokens = _tokens(groups[group])
        share = "" if counts is None else f" ({counts[tokens].sum() / counts.sum():.1%} of the text)"
        # Slots are in order of frequency inside the last digit only: with three lengths sort them anew.
        if counts is not None:
            tokens = tokens[np.lexsort((tokens, -counts[tokens]))]
        else:
            tokens = np.sort(tokens) if args.by != "random" else tokens
        # Text, not markup: a token may look like a tag, "[b]".
        console.print(
            Text(
                f"  group {group + (args.shortlist or 0)}{share}: "
                + " ".join(symbols[t] for t in tokens[:shown])
            )
        )


def _show_languages(console: Console, book: Codebook, by_language: dict[str, Ints]) -> None:
    """How many groups a translation into each language has to do with: what a search of a cascade costs."""
    console.print(f"languages, of {book.lengths[0]:,} groups:")
    group = book.slots.numpy() // (book.size // book.lengths[0])
    for lang, counts in by_language.items():
        weight = np.sort(np.bincount(group, weights=counts, minlength=book.lengths[0]))[::-1]
        most = int(np.searchsorted(np.cumsum(weight), _MOST * weight.sum())) + 1
        console.print(
            f"  {lang}: {int(counts.sum()):,} tokens of text, {int((counts > 0).sum()):,} different, in "
            f"{int((weight > 0).sum()):,} groups; {_MOST:.0%} of the text in {most:,}"
        )


def _tokens(row: Tensor) -> Ints:
    """The tokens of a row of slots, holes left out."""
    tokens: Ints = row[row >= 0].numpy()
    return tokens
