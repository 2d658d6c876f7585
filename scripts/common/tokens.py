"""Lines of text -> lines of tokens with spaces between, in several processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

import sentencepiece
from rich.console import Console
from rich.progress import Progress

from scripts.common.files import PrepareError, read_lines

#: What --gpt2-bpe needs.
GPT2_FILES = ("encoder.json", "vocab.bpe", "dict.txt")

#: Makes an encoder, in the process that is to use it.
Encoder = Callable[[str], str]
Maker = Callable[[], Encoder]

#: Lines a process takes at once.
_CHUNK = 200

#: Lines read at once, for all processes.
_BLOCK = 20_000


def spaces() -> Encoder:
    """Words are what has spaces around it."""
    return lambda line: " ".join(line.split())


def moses(language: str) -> Encoder:
    """Words as the Moses tokenizer tells them apart, ``&`` and the like as they are."""
    from sacremoses import MosesTokenizer  # type: ignore[import-untyped]

    tokenizer = MosesTokenizer(language)
    return lambda line: str(tokenizer.tokenize(line, escape=False, return_str=True))


#: Letters written in two ways, by the name of what is done about it.
NORMALIZERS: dict[str, dict[str, str]] = {
    # Romanian s and t with a comma below, often typed with the cedilla of Turkish.
    "romanian": {"\u015e": "\u0218", "\u015f": "\u0219", "\u0162": "\u021a", "\u0163": "\u021b"},
    "apostrophe": {"\u2019": "'"},
}


#: Moses' own, of quotation marks, dashes, spaces before punctuation and the like; without control characters.
PUNCTUATION = "punctuation"


def words(language: str, tokenize: str, normalize: Sequence[str]) -> Encoder:
    """Text with letters and punctuation normalised, and its words told apart by Moses or ("none") left as
    they are."""
    letters = [name for name in normalize if name != PUNCTUATION]
    table = str.maketrans({old: new for name in letters for old, new in NORMALIZERS[name].items()})
    normalized: Encoder = str.strip
    if PUNCTUATION in normalize:
        from sacremoses import MosesPunctNormalizer

        normalized = MosesPunctNormalizer(language, post_remove_control_chars=True).normalize
    tokenized = moses(language) if tokenize == "moses" else str.strip
    return lambda line: tokenized(normalized(line.translate(table)))


def pieces(model: str) -> Encoder:
    """The pieces of a sentencepiece model."""
    processor = sentencepiece.SentencePieceProcessor(model_file=model)
    return lambda line: " ".join(processor.encode(line, out_type=str))


def gpt2(folder: str) -> Encoder:
    """The byte pairs of GPT-2, as the numbers that fairseq's dictionary of them has."""
    # Not above: it imports all of fairseq, which takes seconds.
    from fairseq.data.encoders.gpt2_bpe_utils import get_encoder

    try:
        encoder = get_encoder(f"{folder}/encoder.json", f"{folder}/vocab.bpe")
    except ValueError as error:
        raise PrepareError(f"encoder.json or vocab.bpe in {folder} is damaged ({error})") from None

    def encode(line: str) -> str:
        try:
            return " ".join(map(str, encoder.encode(line)))
        except KeyError as error:
            raise PrepareError(
                f"encoder.json in {folder} has no {error}: it is incomplete, or does not "
                "belong to this vocab.bpe"
            ) from None

    return encode


_encode: Encoder


def _one(line: str) -> bytes:
    return _encode(line).encode() + b"\n"


def encoded(text: Path, make: Maker, workers: int) -> Iterator[bytes]:
    """The lines of ``text`` as tokens; a bar on a terminal."""
    global _encode
    # Before the processes begin, which have it then: a maker that fails would fail in each, over and over.
    _encode = make()
    size = text.stat().st_size
    console = Console(stderr=True)
    with ExitStack() as stack:
        transform: Callable[[list[str]], Iterable[bytes]] = partial(map, _one)
        # A pool takes a moment to begin: not for a text that one process has read by then.
        if workers > 1 and size > 1_000_000:
            pool = stack.enter_context(get_context("fork").Pool(workers))
            transform = partial(pool.imap, _one, chunksize=_CHUNK)
        bar = stack.enter_context(Progress(console=console, disable=not console.is_terminal, transient=True))
        task = bar.add_task(f"{text.name}: tokens", total=size)
        lines = read_lines(text, blank=True)
        # Some at a time, because a pool reads all it is given into memory.
        while block := list(islice(lines, _BLOCK)):
            yield from transform(block)
            bar.advance(task, sum(len(line.encode()) + 1 for line in block))
