"""What the scripts that prepare data share: text read with care, files written whole or not at all."""

from __future__ import annotations

import io
import json
import lzma
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import sentencepiece

SPLITS = ("train", "valid", "test")


class PrepareError(Exception):
    """Bad input, said in one sentence."""


def read_lines(path: Path, blank: bool = False, strip: bool = True) -> Iterator[str]:
    """The lines of a file, plain or ``.xz``, refused when it is no UTF-8 or has a line without text.

    Only a line feed ends a line: Python's other line ends (such as U+2028) occur inside sentences and would
    shift one side against the other. A carriage return becomes a space, because the commands after this one
    would break the line there.

    Args:
        path: the file.
        blank: allow lines without text, which come as "".
        strip: without blanks at the ends of lines, tabs too.

    Raises:
        PrepareError: as above, or the file is missing, empty or damaged.
    """
    number = 0
    text = False
    try:
        with lzma.open(path) if path.suffix == ".xz" else open(path, "rb") as file:
            for raw in file:
                line = raw.decode("utf-8").replace("\r", " ")
                line = line.strip() if strip else line.removesuffix("\n")
                number += 1
                has_text = bool(line.strip())
                text = text or has_text
                if not has_text and not blank:
                    raise PrepareError(f"line {number} of {path} is empty; every line needs a sentence")
                yield line
    except UnicodeDecodeError as error:
        raise PrepareError(
            f"line {number + 1} of {path} is not UTF-8 ({error.reason}); convert it first, for example "
            "with iconv"
        ) from None
    except (lzma.LZMAError, EOFError) as error:
        raise PrepareError(f"{path} is damaged or not an xz file ({error}); copy it again") from None
    except (FileNotFoundError, IsADirectoryError):
        raise PrepareError(f"there is no file {path}") from None
    if number == 0:
        raise PrepareError(f"{path} is empty; at least one sentence was expected")
    if not text:
        raise PrepareError(f"{path} has only blank lines; at least one sentence was expected")


def write_whole(path: Path, chunks: Iterable[bytes]) -> None:
    """Write a file so that a reader, at any time, sees none or the whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
    os.replace(temporary, path)


def step(path: Path, chunks: Callable[[], Iterable[bytes]]) -> None:
    """Make ``path`` of what ``chunks`` returns, unless it is there."""
    if path.is_file():
        print(f"{path}: already there")
        return
    write_whole(path, chunks())
    print(f"{path}: written")


def same_settings(path: Path, settings: dict[str, object]) -> bool:
    """Whether ``path`` records these settings (False: records nothing).

    Raises:
        PrepareError: it records others. Going on would mix two preparations.
    """
    if not path.is_file():
        return False
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise PrepareError(f"{path} is damaged; remove {path.parent} to prepare again") from None
    changed = sorted(key for key in settings if found.get(key) != settings[key])
    if changed:
        raise PrepareError(
            f"{path.parent} was prepared with other {', '.join(changed)}; "
            "give another --out, or remove it to prepare again"
        )
    return True


def keep_settings(path: Path, settings: dict[str, object]) -> None:
    """Record the settings in ``path``, or check that it records the same.

    Raises:
        PrepareError: it records others.
    """
    if not same_settings(path, settings):
        write_whole(path, [json.dumps(settings, indent=1).encode() + b"\n"])


def run_script(name: str, out: Path, work: Callable[[], None]) -> int:
    """Do ``work``; what goes wrong is told in one sentence. Returns the exit status.

    What this run began is of no use without its end; what was there is not ours to remove.
    """
    new = not out.exists()
    empty = out.is_dir() and not any(out.iterdir())
    try:
        work()
    except (PrepareError, OSError) as error:
        if new or empty:
            shutil.rmtree(out, ignore_errors=True)
        if empty:
            out.mkdir(exist_ok=True)
        said = str(error)
        # The system does not name the file of a failed write.
        if isinstance(error, OSError) and error.filename is None:
            said = f"{error.strerror or error}, writing to {out}"
        print(f"{name}: error: {said}", file=sys.stderr)
        return 1
    return 0


def evenly(text: Iterable[Path], sample: int) -> Iterator[str]:
    """Lines of files that have text, or about ``sample`` of them (0: all), spread evenly."""
    paths = list(text)
    total = sum(1 for path in paths for _ in read_lines(path, blank=True)) if sample else 0
    share = min(1.0, sample / total) if total else 1.0
    owed = 0.0
    for path in paths:
        for line in read_lines(path, blank=True):
            owed += share
            if owed >= 1 - 1e-9:
                owed -= 1
                if line:
                    yield line


def train_pieces(text: Iterable[Path], vocab_size: int, sample: int = 0, threads: int = 1) -> bytes:
    """A joint byte-pair model of ``text``, the same bytes on every run with as many threads.

    Args:
        text: files.
        vocab_size: pieces, with sentencepiece's own three.
        sample: sentences that it is made of, 0 for all.
        threads: to read with; the pieces are the same with any number.

    Byte pairs rather than sentencepiece's default, a unigram model: on a corpus of some thousand lines the
    latter splits the commonest words (``fü r``) and needs 7% more pieces for the bundled test set.
    """
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=evenly(text, sample),
            model_writer=model,
            vocab_size=vocab_size,
            model_type="bpe",
            character_coverage=1.0,
            num_threads=threads,
            minloglevel=2,
        )
    except RuntimeError as error:
        # The library's message begins with the line of its source that raised it.
        reason = str(error).strip().splitlines()[-1].split("] ")[-1].strip()
        raise PrepareError(
            f"sentencepiece could not train a model of {vocab_size} pieces: {reason}"
        ) from None
    return model.getvalue()
