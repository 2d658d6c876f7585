"""What `mhe convert` says of a checkpoint for another dictionary."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from mhe_fairseq.cli.convert_dictionary import Grown
from mhe_fairseq.cli.finetune_line import finetune_line
from mhe_fairseq.coding.symbols import is_padding
from mhe_fairseq.models.regrow import Dictionaries

#: Symbols that are gone are named up to this number.
_NAMED = 10


def report(grown: Grown, args: argparse.Namespace, output: Path, codes: Path) -> None:
    """Say what was written, what became of the symbols, and how to train it on."""
    weights, arch = grown.weights, str(grown.state["cfg"].model._name)
    print(f"{output}: --arch {arch} for the dictionary of {args.data}; {output.stat().st_size:,} bytes")
    if grown.source is grown.target:
        print(f"  dictionary, once that of {grown.old_data}: {counted(grown.source)}")
    else:
        print(f"  dictionary of the source, once that of {grown.old_data}: {counted(grown.source)}")
        print(f"  dictionary of the target: {counted(grown.target)}")
    for table in weights.tables:
        beyond = ""
        if table.beyond:
            beyond = (
                f"; {table.beyond:,} rows beyond the dictionary's symbols are left out, no symbol names them "
                "(padding, or symbols that another task adds)"
            )
        print(f"  {table.name}: {table.old:,} rows, now {table.new:,}{beyond}")
    if weights.book is not None and weights.old_book is not None:
        before, now = ("x".join(map(str, each.lengths)) for each in (weights.old_book, weights.book))
        grew = f"{now}, as before" if before == now else f"{now}, grown from {before}"
        rest = f"{weights.book.holes:,} holes, fingerprint {weights.book.fingerprint}"
        print(f"  codebook {codes}: {grew}; {rest}")
    if grown.drops_average:
        print("  the averaged weights of --store-ema are left out; a training makes new ones")
    print(f"  {grown.seconds:.1f} seconds")
    print("to train it on:")
    codebook = None if weights.book is None else codes
    line = finetune_line(grown.state, arch, grown.rate, args.data, output, codebook)
    print(f"  {shlex.join(line)}")


def counted(side: Dictionaries) -> str:
    """What became of the symbols of a side, in one line."""
    origins, made = side.origins, len(side.origins.pieces)
    padded = sum(is_padding(side.new[token]) for token in origins.new.tolist())
    said = f"{len(side.old):,} symbols, now {len(side.new):,}: {len(origins.kept):,} stay, "
    said += f"{len(origins.new):,} new"
    if len(origins.new):
        said += f" ({made:,} made of known pieces, {len(origins.new) - made - padded:,} not"
        said += f", {padded:,} of padding)" if padded else ")"
    gone = [side.old[token] for token in origins.gone.tolist()]
    padding = [symbol for symbol in gone if is_padding(symbol)]
    gone = [symbol for symbol in gone if not is_padding(symbol)]
    said += f", {len(gone):,} gone"
    if gone:
        said += f": {' '.join(gone[:_NAMED])}{' ...' if len(gone) > _NAMED else ''}"
    if padding:
        said += f"; and {len(padding):,} of padding ({padding[0]}{' ...' if len(padding) > 1 else ''}) gone"
    return said
