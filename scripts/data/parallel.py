"""The two sides of a parallel text, as archives have them."""

from __future__ import annotations

import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from itertools import zip_longest
from lzma import LZMAError
from pathlib import Path, PurePosixPath
from typing import IO

from scripts.common.files import PrepareError, write_whole

#: A line, or None where it is no UTF-8.
Line = str | None

_CHUNK = 1 << 20

_SEGMENT = re.compile(r"<seg\b[^>]*>(.*)</seg>", re.IGNORECASE)

#: Lines of IWSLT's train.tags that are about a talk, not of it.
_ABOUT = ("<url>", "<talkid>", "<keywords>")

_TAGS = re.compile(r"</?(?:title|description)>")


def unpack(archive: Path, wanted: Mapping[str, Path]) -> None:
    """Copy members of an archive to files, each whole or not at all; those that are there are kept.

    Args:
        archive: a .tgz, .tar.gz, .tar or .zip.
        wanted: name of a member -> the file to make.

    Raises:
        PrepareError: it is missing or damaged, or lacks a member.
    """
    missing = {name: path for name, path in wanted.items() if not path.is_file()}
    if not missing:
        return
    seen = []
    try:
        for name, member in _members(archive):
            seen.append(name)
            if name in missing:
                with member() as file:
                    write_whole(missing.pop(name), iter(lambda: file.read(_CHUNK), b""))
            if not missing:
                return
    except FileNotFoundError:
        raise PrepareError(f"there is no archive {archive}") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, LZMAError) as error:
        raise PrepareError(
            f"{archive} is damaged ({type(error).__name__}: {error}); remove it and download it again"
        ) from None
    what = (
        f"has {', '.join(sorted(seen)[:5])}{' and others' if len(seen) > 5 else ''}" if seen else "is empty"
    )
    raise PrepareError(f"{archive} has no {min(missing)}; it {what}")


def _members(archive: Path) -> Iterator[tuple[str, Callable[[], IO[bytes]]]]:
    """The files in an archive: their names, and how to open each, before the next one is asked for."""
    if archive.suffix == ".zip":
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                if not info.is_dir():
                    yield str(PurePosixPath(info.filename)), lambda info=info: zipped.open(info)  # type: ignore[misc]
        return
    with tarfile.open(archive, "r|*") as tar:
        for entry in tar:
            if entry.isfile():
                yield str(PurePosixPath(entry.name)), lambda entry=entry: tar.extractfile(entry)  # type: ignore[misc]


def _raw_lines(path: Path) -> Iterator[Line]:
    """Only a line feed ends a line, and a carriage return is a space, as in ``files.read_lines``."""
    with open(path, "rb") as file:
        for raw in file:
            try:
                yield raw.decode("utf-8").replace("\r", " ").strip()
            except UnicodeDecodeError:
                yield None


def segments(path: Path) -> Iterator[Line]:
    """What stands in the ``<seg>`` of an SGML or XML file of a test set, spaces squeezed as sacrebleu does.

    Raises:
        PrepareError: a segment does not end on its line.
    """
    for number, line in enumerate(_raw_lines(path), start=1):
        if line is None:
            yield None
        elif line.lower().startswith("<seg"):
            found = _SEGMENT.match(line)
            if found is None:
                raise PrepareError(f"line {number} of {path} has a <seg> that does not end on the same line")
            yield re.sub(r"\s+", " ", found[1].strip())


def tags(path: Path) -> Iterator[Line]:
    """The text of IWSLT's ``train.tags``: lines about the talks left out, titles and descriptions kept."""
    for line in _raw_lines(path):
        if line is None or not any(about in line for about in _ABOUT):
            yield line if line is None else _TAGS.sub("", line).strip()


READERS: dict[str, Callable[[Path], Iterator[Line]]] = {
    "plain": _raw_lines,
    "segments": segments,
    "tags": tags,
}


def pairs(files: tuple[Path, Path], format: str, strict: bool) -> Iterator[tuple[str, str]]:
    """The pairs of a parallel text.

    Args:
        files: source and target.
        format: a key of ``READERS``.
        strict: every line counts (a test set); otherwise pairs with an empty side or one that is no UTF-8
            are left out.

    Raises:
        PrepareError: the sides differ in length, or a line of a strict text is no UTF-8.
    """
    source, target = (READERS[format](path) for path in files)
    number = 0
    for number, (left, right) in enumerate(zip_longest(source, target, fillvalue=0), start=1):
        if left == 0 or right == 0:
            counts = [sum(1 for _ in READERS[format](path)) for path in files]
            raise PrepareError(
                f"{files[0]} has {counts[0]} sentences and {files[1]} has {counts[1]}; "
                "they must have the same number"
            )
        if strict and (left is None or right is None):
            raise PrepareError(f"sentence {number} of {files[left is not None]} is not UTF-8")
        if strict or (left and right):
            yield left or "", right or ""  # type: ignore[misc]
    if number == 0:
        raise PrepareError(f"{files[0]} and {files[1]} contain no sentence; is '{format}' their format?")


def write_together(paths: tuple[Path, ...], rows: Iterable[tuple[str, ...]]) -> int:
    """Write columns to files of their own, line by line; all of them get their names when all are whole.

    Returns:
        how many rows there were.
    """
    temporary = [path.with_name(path.name + ".tmp") for path in paths]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
    count = 0
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "w", encoding="utf-8", newline="\n")) for path in temporary]
        for row in rows:
            for file, text in zip(files, row, strict=True):
                file.write(text + "\n")
            count += 1
    for path, whole in zip(paths, temporary, strict=True):
        whole.replace(path)
    return count
