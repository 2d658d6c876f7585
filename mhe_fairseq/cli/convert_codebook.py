"""The codebook of a model that is converted: given, its own, or made of its training text."""

from __future__ import annotations

import argparse
from typing import Any

from mhe_fairseq.cli.analyze_model import LoadedModel
from mhe_fairseq.cli.assign import assign_slots
from mhe_fairseq.cli.assign_text import ManyTexts, OneText, Text
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import translates
from mhe_fairseq.cli.data import DataDirectory
from mhe_fairseq.cli.pairs import PairsDirectory
from mhe_fairseq.coding import Codebook, plan_lengths, symbols_fingerprint
from mhe_fairseq.errors import MHEError

#: Columns of neighbours on each side, as `mhe assign` has them unless told.
CONTEXTS = 4096


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
    own = model.codebook
    if own is not None and own.heads == 2 and model.head in ("sampling", "cascade"):
        return own, True
    flags = argparse.Namespace(
        by="cluster",
        from_checkpoint=None,
        shortlist=None,
        contexts=CONTEXTS,
        seed=args.seed,
        data=args.data,
    )
    text = training_text(args.data, model.task, model.options, not shares_sides)
    made = assign_slots(flags, text, lengths, len(symbols), bars)
    return Codebook(lengths, made.slots, dictionary=fingerprint), True


def training_text(data: str, task: Any, options: Any, target_only: bool) -> Text:
    """What clusters are made of, as a task reads it.

    Args:
        data: folder, or several with ':'.
        task: fairseq's.
        options: its config.
        target_only: without the source side of a pair.

    Raises:
        MHEError: no text.
    """
    dictionary = task.target_dictionary
    pairs = getattr(options, "lang_pairs", None)
    if not pairs:
        lang = options.target_lang if translates(options._name) else None
        return OneText(DataDirectory(data, lang), dictionary, target_only)
    folder = PairsDirectory(data, list(pairs), list(task.langs), options.fixed_dictionary)
    method, temperature = options.sampling_method, float(options.sampling_temperature)
    return ManyTexts(folder, dictionary, target_only, method, temperature)
