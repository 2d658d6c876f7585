"""How often each token of a dictionary occurs: as the dictionary says, a file, or Zipf's law."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from fairseq.data import Dictionary


def read_counts(dictionary: Dictionary, args: argparse.Namespace) -> tuple[Tensor, str]:
    """(V,) float64 frequencies of the tokens, and in words where they are from."""
    if args.counts:
        counts = _counts_of_file(dictionary, Path(args.counts), Path(args.dict))
        return counts, args.counts
    counts = torch.tensor(dictionary.count, dtype=torch.float64)
    own = counts[dictionary.nspecial :]
    if bool((own < 0).any()):
        bad = int((own < 0).nonzero()[0]) + dictionary.nspecial
        raise MHEError(
            f"dictionary {args.dict} counts {dictionary[bad]!r} {dictionary.count[bad]} times; "
            "a count is 0 or more"
        )
    if own.unique().numel() > 1:
        return counts, args.dict
    if args.counts is not None:
        raise MHEError(
            f"--counts asks for frequencies and the dictionary {args.dict} has none: all its counts are "
            f"{int(own[0])}; give a file of `symbol count` lines, --counts FILE"
        )
    return 1.0 / (torch.arange(len(counts), dtype=torch.float64) + 1.0), "Zipf's law"


def _counts_of_file(dictionary: Dictionary, path: Path, dictionary_path: Path) -> Tensor:
    """(V,) counts from a file of `symbol count` lines in any order, each symbol of the dictionary once."""
    if not path.is_file():
        raise MHEError(f"there is no counts file {path}; it needs lines of `symbol count`")
    found: dict[str, int] = {}
    # Lines end with \n only: symbols may hold other characters that Python takes for line ends.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            symbol, _, field = line.rstrip("\r\n").rpartition(" ")
            if not symbol or not field.isdecimal():
                raise MHEError(
                    f"line {number} of the counts file {path} is {line.rstrip()!r}, not `symbol count`"
                )
            if symbol in found:
                raise MHEError(f"the counts file {path} has {symbol!r} twice (again in line {number})")
            found[symbol] = int(field)
    symbols = dictionary.symbols
    wanted = symbols[dictionary.nspecial :]
    strange = sorted(set(found) - set(symbols))
    missing = sorted(set(wanted) - set(found))
    if strange or missing:
        example = f"{strange[0]!r} is not in the dictionary" if strange else f"{missing[0]!r} has no count"
        raise MHEError(
            f"the counts file {path} does not match the dictionary {dictionary_path}: {len(found)} symbols "
            f"against {len(wanted)}, {len(strange)} of them unknown and {len(missing)} missing; {example}"
        )
    if not any(found.values()):
        raise MHEError(f"all counts in {path} are 0; they must come from a text")
    return torch.tensor([found.get(symbol, 0) for symbol in symbols], dtype=torch.float64)


def tokens_of_text(counts: Tensor, source: str) -> int | None:
    return None if source == "Zipf's law" else int(counts.sum())
