"""The codebook of a model that is converted: given, its own, or made of its training text."""

from __future__ import annotations

import argparse

from mhe_fairseq.cli.analyze_model import LoadedModel
from mhe_fairseq.cli.assign import assign_slots
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import translates
from mhe_fairseq.cli.data import DataDirectory
from mhe_fairseq.coding import Codebook, plan_lengths, symbols_fingerprint
from mhe_fairseq.errors import MHEError


def codebook_for(
    args: argparse.Namespace, model: LoadedModel, shares_sides: bool, bars: Bars
) -> tuple[Codebook, bool]:
    """The codebook of the new head, and whether no file has it yet.

    Args:
        args: of `mhe convert`.
        model: what is converted.
        shares_sides: the embeddings of source and target are one table.
        bars: for clusters.

    Raises:
        MHEError: a codebook of another dictionary, or of another number of digits than the head's.
    """
    symbols = model.symbols()
    fingerprint = symbols_fingerprint(symbols)
    if args.codebook is not None:
        book = Codebook.load(args.codebook)
        book.check_dictionary(fingerprint, len(symbols), f"codebook file {args.codebook}")
        wanted = {"cascade": (2,), "sampling": (2, 3)}.get(args.head)
        if wanted is not None and book.heads not in wanted:
            raise MHEError(
                f"codebook file {args.codebook} has {book.heads} lengths, "
                f"{','.join(map(str, book.lengths))}, and --head {args.head} needs "
                f"{' or '.join(map(str, wanted))}, such as {','.join(map(str, plan_lengths(len(symbols))))}"
            )
        return book, False
    lengths = plan_lengths(len(symbols))
    if args.head == "softmax":
        # It has no use for groups: the dictionary's order, which a training plans as well.
        return Codebook(lengths, vocab_size=len(symbols), dictionary=fingerprint), False
    if model.head == "sampling" and model.codebook is not None and model.codebook.heads == 2:
        return model.codebook, True
    options = model.options
    lang = options.target_lang if translates(options._name) else None
    flags = argparse.Namespace(
        by="cluster",
        from_checkpoint=None,
        shortlist=None,
        target_only=not shares_sides,
        contexts=4096,
        seed=args.seed,
        data=args.data,
    )
    made = assign_slots(flags, DataDirectory(args.data, lang), lengths, len(symbols), bars)
    return Codebook(lengths, made.slots, dictionary=fingerprint), True
