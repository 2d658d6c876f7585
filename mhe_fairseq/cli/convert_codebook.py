"""The codebook of a model that is converted: given, its own, or made of its training text."""

from __future__ import annotations

import argparse

from mhe_fairseq.cli.analyze_model import LoadedModel
from mhe_fairseq.cli.assign import assign_slots
from mhe_fairseq.cli.assign_text import ManyTexts, OneText, Text
from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.checkpoint import translates
from mhe_fairseq.cli.data import DataDirectory
from mhe_fairseq.cli.pairs import PairsDirectory
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
    own = model.codebook
    if own is not None and own.heads == 2 and model.head in ("sampling", "cascade"):
        return own, True
    flags = argparse.Namespace(
        by="cluster",
        from_checkpoint=None,
        shortlist=None,
        contexts=4096,
        seed=args.seed,
        data=args.data,
    )
    made = assign_slots(flags, _text(args.data, model, shares_sides), lengths, len(symbols), bars)
    return Codebook(lengths, made.slots, dictionary=fingerprint), True


def _text(data: str, model: LoadedModel, shares_sides: bool) -> Text:
    """The training text that clusters are made of."""
    options, dictionary = model.options, model.task.target_dictionary
    pairs = getattr(options, "lang_pairs", None)
    if not pairs:
        lang = options.target_lang if translates(options._name) else None
        return OneText(DataDirectory(data, lang), dictionary, not shares_sides)
    folder = PairsDirectory(data, list(pairs), list(model.task.langs), options.fixed_dictionary)
    method, temperature = options.sampling_method, float(options.sampling_temperature)
    return ManyTexts(folder, dictionary, not shares_sides, method, temperature)
