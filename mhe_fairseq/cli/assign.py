"""`mhe assign`: make a codebook, the slot of every token, from binarised data or a trained embedding."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.text import Text
from torch import Tensor

from mhe_fairseq.cli.bars import Bars
from mhe_fairseq.cli.output import check_output
from mhe_fairseq.coding import Codebook, parse_lengths, plan_lengths, symbols_fingerprint
from mhe_fairseq.coding.assign import (
    CHUNK,
    Ints,
    cluster_slots,
    context_vectors,
    count_tokens,
    embedding_vectors,
    frequency_slots,
    random_slots,
)
from mhe_fairseq.coding.shortlist import plan_shortlist, shortlist_slots
from mhe_fairseq.errors import MHEError

if TYPE_CHECKING:
    from fairseq.data import Dictionary

METHODS = ("cluster", "frequency", "random")

#: Groups, and tokens of each, that the report shows.
_EXAMPLES = (5, 10)

#: Where fairseq's models keep the embedding of the tokens they predict, best first.
_EMBEDDINGS = (
    "decoder.embed_tokens.weight",
    "encoder.sentence_encoder.embed_tokens.weight",
    "decoder.output_projection.weight",
)


def add_parser(subparsers: argparse._SubParsersAction[Any]) -> None:
    """Add `mhe assign`."""
    parser = subparsers.add_parser(
        "assign",
        help="make a codebook from binarised data or a trained embedding",
        description="Give every token of a dictionary a slot in a grid of digits, and write the codebook "
        "that --mhe-codebook takes.",
    )
    parser.add_argument(
        "--data",
        required=True,
        metavar="BIN",
        help="directory written by fairseq-preprocess; several with ':'",
    )
    parser.add_argument(
        "--lengths", metavar="L,L", help="such as 128,256 (default: planned for the vocabulary)"
    )
    parser.add_argument(
        "--shortlist",
        type=int,
        metavar="S",
        help="the S most frequent tokens of the text have a first digit of their own, for a product head: it "
        "is a full softmax among them (lengths are planned for it too)",
    )
    parser.add_argument(
        "--by",
        choices=METHODS,
        default="cluster",
        help="cluster: tokens used alike share their first digits (default); frequency: dictionary order; "
        "random",
    )
    parser.add_argument("--seed", type=int, default=1, help="for cluster and random (default 1)")
    parser.add_argument(
        "--from-checkpoint",
        metavar="CKPT",
        help="cluster the embedding of this fairseq checkpoint, not the text",
    )
    parser.add_argument(
        "--target-lang", metavar="LANG", help="side to make codes for (default: the target of the only pair)"
    )
    parser.add_argument(
        "--add-symbol",
        action="append",
        default=[],
        metavar="SYMBOL",
        help="a symbol that the task adds to the dictionary; masked_lm adds '<mask>'; may be repeated",
    )
    parser.add_argument(
        "--contexts",
        type=int,
        default=4096,
        metavar="C",
        help="count neighbours among the C most frequent tokens (default 4096)",
    )
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="codebook file to write")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Make the codebook, write it, say what it is.

    Raises:
        MHEError: bad data, dictionary, lengths, checkpoint or output path; the output is not touched.
    """
    started = time.monotonic()
    output = Path(args.output)
    check_output(output, "codes")
    if args.contexts < 1:
        raise MHEError(f"--contexts is a number of tokens, at least 1; got {args.contexts}")
    if not 0 <= args.seed < 2**63:
        raise MHEError(f"--seed must be a whole number from 0 to 2**63 - 1, got {args.seed}")
    if args.from_checkpoint is not None and args.by != "cluster":
        raise MHEError(f"--from-checkpoint gives what is clustered; it does not go with --by {args.by}")
    lengths = None if args.lengths is None else parse_lengths(args.lengths)
    data = DataDirectory(args.data, args.target_lang)
    dictionary = read_dictionary(data.dictionary, args.add_symbol)
    vocab_size = len(dictionary)
    if lengths is not None:
        lengths = parse_lengths(lengths, vocab_size)
    elif args.shortlist is not None:
        lengths = plan_shortlist(vocab_size, args.shortlist)
    else:
        lengths = plan_lengths(vocab_size)
    if args.by == "cluster" and len(lengths) < 2:
        raise MHEError(
            "--by cluster makes clusters first digits, so it needs at least two lengths such as "
            f"{','.join(map(str, plan_lengths(vocab_size)))}; got {lengths[0]}"
        )
    with Bars() as bars:
        made = _assign(args, data, lengths, vocab_size, bars)
    book = Codebook(lengths, made.slots, dictionary=symbols_fingerprint(dictionary.symbols))
    book.save(output)
    _report(book, dictionary.symbols, made, args, time.monotonic() - started)
    return 0


class _Assigned(NamedTuple):
    """Attributes:
    slots: (V,) long.
    counts: (V,) of the text, where it was read.
    source: what they were made of, in words.
    """

    slots: Tensor
    counts: Ints | None
    source: str


def _assign(
    args: argparse.Namespace, data: DataDirectory, lengths: tuple[int, ...], vocab_size: int, bars: Bars
) -> _Assigned:
    """Slots of all tokens, as the flags ask."""
    counts, vectors = None, None
    reads_text = args.by == "cluster" and args.from_checkpoint is None
    if reads_text or args.shortlist is not None:
        text = BinarisedText(data.text_prefixes())
        counts = count_tokens(text, vocab_size, bars.update, text.tokens)
        if not counts.any():
            what = "clusters need text" if reads_text else "a shortlist needs text"
            raise MHEError(f"the training text in {args.data} is empty; {what}")
    if reads_text:
        assert counts is not None
        vectors = context_vectors(text, counts, contexts=args.contexts, seed=args.seed, progress=bars.update)
        source = f"clusters of neighbours in {int(counts.sum()):,} tokens, seed {args.seed}"
    elif args.from_checkpoint is not None:
        vectors = embedding_vectors(read_embedding(Path(args.from_checkpoint), vocab_size), seed=args.seed)
        source = f"clusters of the embedding in {args.from_checkpoint}, seed {args.seed}"
    else:
        source = "dictionary order" if args.by == "frequency" else f"random order, seed {args.seed}"

    def layout(tokens: Ints, lengths: tuple[int, ...]) -> Tensor:
        if args.by == "frequency":
            return frequency_slots(len(tokens), lengths)
        if args.by == "random":
            return random_slots(len(tokens), lengths, args.seed)
        assert vectors is not None
        return cluster_slots(
            vectors[tokens], lengths, None if counts is None else counts[tokens], bars.update
        )

    if args.shortlist is None:
        return _Assigned(layout(np.arange(vocab_size), lengths), counts, source)
    assert counts is not None
    source = f"the {args.shortlist:,} most frequent tokens by themselves, then {source}"
    return _Assigned(shortlist_slots(counts, lengths, args.shortlist, layout), counts, source)


# ---- input


class DataDirectory:
    """What fairseq-preprocess left: where the dictionary and the training text of one side are.

    Args:
        data: the directory, or several separated by ':' as fairseq takes them.
        lang: the side wanted; None: the target of the only language pair, or the only text there is.

    Raises:
        MHEError: no directory, no dictionary, or more than one side that could be meant.
    """

    def __init__(self, data: str, lang: str | None) -> None:
        self.folders = [Path(part) for part in data.split(os.pathsep) if part]
        if not self.folders:
            raise MHEError("--data is empty; it must be a directory written by fairseq-preprocess")
        for folder in self.folders:
            if not folder.is_dir():
                raise MHEError(f"there is no data directory {folder}; fairseq-preprocess writes one")
        self.lang = self._only_target() if lang is None else lang
        name = "dict.txt" if self.lang is None else f"dict.{self.lang}.txt"
        self.dictionary = self.folders[0] / name
        if not self.dictionary.is_file():
            found = sorted(path.name for path in self.folders[0].glob("dict*.txt")) or ["none"]
            raise MHEError(
                f"{self.folders[0]} has no {name}, the dictionary of the target side "
                f"(dictionaries there: {', '.join(found)}); "
                "give a directory written by fairseq-preprocess, and its language with --target-lang"
            )

    def text_prefixes(self) -> list[str]:
        """Paths without .bin and .idx of the training text, all shards.

        Raises:
            MHEError: there is none.
        """
        names = sorted(name for folder in self.folders for name in self._texts(folder))
        if self.lang is None:
            wanted = [n for n in names if re.fullmatch(r"train\d*", Path(n).name)]
            expected = "train.idx"
        else:
            side = re.escape(self.lang)
            as_target = rf"train\d*\.[^.]+-{side}\.{side}"
            as_source = rf"train\d*\.{side}-[^.]+\.{side}"
            wanted = [n for n in names if re.fullmatch(as_target, Path(n).name)]
            # A pair binarised the other way round has the text just the same.
            wanted = wanted or [n for n in names if re.fullmatch(as_source, Path(n).name)]
            expected = f"train.*-{self.lang}.{self.lang}.idx"
        if not wanted:
            found = ", ".join(sorted({Path(n).name for n in names})) or "none"
            raise MHEError(
                f"{os.pathsep.join(map(str, self.folders))} has no binarised target side: "
                f"expected {expected} with its .bin (training texts there: {found})"
            )
        return wanted

    def _only_target(self) -> str | None:
        pairs = set()
        for folder in self.folders:
            for name in self._texts(folder):
                if match := re.fullmatch(r"train\d*\.([^.-]+)-([^.-]+)\.[^.]+", Path(name).name):
                    pairs.add((match[1], match[2]))
        # `fairseq-preprocess --only-source -s en` calls the other side None.
        targets = {source if target == "None" else target for source, target in pairs}
        if len(targets) > 1:
            shown = ", ".join("-".join(pair) for pair in sorted(pairs))
            raise MHEError(
                f"{self.folders[0]} has several pairs ({shown}); say which side with --target-lang"
            )
        return targets.pop() if targets else None

    @staticmethod
    def _texts(folder: Path) -> list[str]:
        return [str(path.with_suffix("")) for path in folder.glob("train*.idx")]


class BinarisedText:
    """Training text as arrays of at most ``CHUNK`` tokens; may be read more than once.

    Args:
        prefixes: paths without .bin and .idx.

    Raises:
        MHEError: a file that is missing, damaged or not an indexed dataset.
    """

    def __init__(self, prefixes: list[str]) -> None:
        self._parts = [(prefix, self._open(prefix)) for prefix in prefixes]
        self.tokens = sum(int(np.sum(part.sizes)) for _, part in self._parts)

    def __iter__(self) -> Iterator[Ints]:
        from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path

        for prefix, part in self._parts:
            if isinstance(part, MMapIndexedDataset):
                # Sentences lie end to end in the file; taking them one by one costs ten times as much.
                stream = np.memmap(data_file_path(prefix), dtype=part._index.dtype, mode="r")
                for start in range(0, len(stream), CHUNK):
                    yield stream[start : start + CHUNK].astype(np.int64)
            else:
                yield from _gather(part)

    @staticmethod
    def _open(prefix: str) -> Any:
        from fairseq.data.data_utils import load_indexed_dataset
        from fairseq.data.indexed_dataset import MMapIndexedDataset, data_file_path, infer_dataset_impl

        wrong = f"{prefix}.idx and {prefix}.bin are not a binarised text"
        again = "write them again with fairseq-preprocess"
        data = Path(data_file_path(prefix))
        if data.is_file() and data.stat().st_size == 0:
            # fairseq cannot map an empty file, and its dataset's destructor complains once more.
            raise MHEError(f"the training text {data} is empty; clusters need text")
        try:
            # A "cached" dataset must be told beforehand what will be read of it; "lazy" reads the same.
            implementation = infer_dataset_impl(prefix)
            part = load_indexed_dataset(
                prefix, dataset_impl="lazy" if implementation == "cached" else implementation
            )
        except Exception as error:  # fairseq asserts, struct and numpy complain, each in its own way
            raise MHEError(f"{wrong} ({type(error).__name__}: {error}); {again}") from error
        if part is None:
            raise MHEError(f"{wrong} (one of the two is missing); {again}")
        if isinstance(part, MMapIndexedDataset):
            size = os.path.getsize(data_file_path(prefix))
            expected = int(np.sum(part.sizes, dtype=np.int64)) * np.dtype(part._index.dtype).itemsize
            if size != expected:
                raise MHEError(
                    f"{prefix}.bin has {size} bytes, its index says {expected}: a copy broken off? {again}"
                )
        return part


def _gather(part: Any) -> Iterator[Ints]:
    """Sentences of any other dataset put together."""
    held: list[Ints] = []
    size = 0
    for index in range(len(part)):
        held.append(part[index].numpy().astype(np.int64))
        size += len(held[-1])
        if size >= CHUNK:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def read_dictionary(path: Path, extra: list[str] | None = None) -> Dictionary:
    """A fairseq dictionary, as a task has it after loading: special symbols first, ``extra`` ones last.

    Raises:
        MHEError: missing, malformed, without symbols, or an extra symbol that is there already.
    """
    from fairseq.data import Dictionary

    if not path.is_file():
        raise MHEError(
            f"there is no dictionary {path}; fairseq-preprocess writes dict.LANG.txt (or dict.txt)"
        )
    try:
        dictionary = Dictionary.load(str(path))
    except Exception as error:  # ValueError, RuntimeError, and a bare Exception for a wrong encoding
        reason = str(error).strip().split("\n")[0]
        raise MHEError(
            f"dictionary {path} cannot be read, every line must be `symbol count`: {reason}"
        ) from error
    if len(dictionary) == dictionary.nspecial:
        raise MHEError(f"dictionary {path} has no symbols, every line must be `symbol count`")
    for symbol in extra or []:
        if symbol in dictionary:
            raise MHEError(f"--add-symbol {symbol}: the dictionary {path} has this symbol already")
        dictionary.add_symbol(symbol)
    return dictionary


def read_embedding(path: Path, vocab_size: int) -> Tensor:
    """The embedding of the predicted tokens in a fairseq checkpoint. Shape: (V, d).

    Only tensors, numbers, strings and option namespaces are unpickled.

    Raises:
        MHEError: missing, damaged, no such embedding, or of another number of tokens.
    """
    if not path.is_file():
        raise MHEError(f"there is no checkpoint {path}")
    try:
        # What fairseq writes beside tensors was allowed on import (mhe_fairseq.checkpoints).
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from the pickle, zip and struct machinery, whatever the bytes lead it to
        reason = str(error).strip().split("\n")[0][:200]
        raise MHEError(f"{path} is not a fairseq checkpoint that can be read safely ({reason})") from error
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise MHEError(f"{path} is not a fairseq checkpoint: it has no part `model`")
    for name in _EMBEDDINGS:
        embedding = model.get(name)
        if isinstance(embedding, Tensor):
            break
    else:
        raise MHEError(f"checkpoint {path} has no token embedding; looked for {', '.join(_EMBEDDINGS)}")
    if embedding.size(0) != vocab_size:
        raise MHEError(
            f"the embedding in checkpoint {path} ({name}) is of {embedding.size(0)} tokens, the dictionary "
            f"has {vocab_size}; use the data the model was trained on"
        )
    return embedding


# ---- output


def _report(
    book: Codebook, symbols: list[str], made: _Assigned, args: argparse.Namespace, seconds: float
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


def _tokens(row: Tensor) -> Ints:
    """The tokens of a row of slots, holes left out."""
    tokens: Ints = row[row >= 0].numpy()
    return tokens
