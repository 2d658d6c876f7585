#!/usr/bin/env python3
"""Download a file: complete and with the right checksum, or not at all.

    python scripts/data/download.py URL FILE --sha256 DIGEST

What was downloaded so far is kept in FILE.part. After a dropped connection, or in another run, the download
continues from there. FILE appears when it is complete and its checksum is right. An existing FILE with the
right checksum is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from io import FileIO
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

#: Attempts in a row that bring nothing before it gives up.
ATTEMPTS = 5

#: Seconds before the second attempt; twice as many before each one after it.
WAIT = 1.0

#: Seconds without a byte that count as a dropped connection.
TIMEOUT = 60

_CHUNK = 1 << 16

#: Answers that another attempt may change: a timeout, too many requests.
_PASSING = (408, 429)


class DownloadError(Exception):
    """What went wrong, in one sentence."""


def download(
    url: str,
    path: Path,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    offline: Path | None = None,
    offline_name: str | None = None,
) -> None:
    """Fetch ``url`` to ``path``.

    Args:
        url: http or https.
        path: the file to make. Its folder is made, too.
        sha256: what the file must have, hexadecimal.
        md5: the same by MD5, where no better checksum was ever published.
        offline: take the file of the URL's name from this folder, and nothing from the network.
        offline_name: its name there, if it is another.

    Raises:
        DownloadError: it could not be had, or is not the right file.
    """
    if path.exists():
        wrong = _wrong(path, sha256, md5)
        if wrong:
            raise DownloadError(f"{path} exists, but {wrong}; remove it to download it again")
        print(f"{path}: already there")
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if offline is None:
        _fetch(url, part)
        source = url
    else:
        name = offline_name or Path(urllib.parse.urlsplit(url).path).name
        if not (offline / name).is_file():
            raise DownloadError(f"{offline} has no {name}; put the file there, from {url}")
        shutil.copyfile(offline / name, part)
        source = str(offline / name)
    wrong = _wrong(part, sha256, md5)
    if wrong:
        part.unlink()
        raise DownloadError(f"{source} is damaged or was changed: {wrong}; the download was removed")
    os.replace(part, path)
    print(f"{path}: {path.stat().st_size:,} bytes")


def _wrong(path: Path, sha256: str | None, md5: str | None) -> str:
    """What is wrong with a file's checksum; empty: nothing."""
    for kind, wanted in (("sha256", sha256), ("md5", md5)):
        if wanted is not None:
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, kind).hexdigest()
            if found != wanted.lower():
                return f"its {kind} is {found} and not {wanted.lower()}"
    return ""


def _fetch(url: str, part: Path) -> None:
    """Fill ``part``, over as many connections as it takes."""
    failures = 0
    console = Console(stderr=True)
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        while True:
            before = part.stat().st_size if part.exists() else 0
            try:
                if _connect(url, part, before, bar):
                    return
                reason = "the connection was dropped"
            except urllib.error.HTTPError as error:
                if error.code < 500 and error.code not in _PASSING:
                    raise DownloadError(
                        f"{url} could not be downloaded: the server says {error.code} {error.reason}"
                    ) from None
                reason = f"the server says {error.code} {error.reason}"
            except ValueError as error:
                raise DownloadError(f"{url} could not be downloaded: {error}") from None
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
            after = part.stat().st_size if part.exists() else 0
            failures = 0 if after > before else failures + 1
            if failures == ATTEMPTS:
                raise DownloadError(
                    f"{url} could not be downloaded: {reason}, {ATTEMPTS} times in a row; "
                    f"{after:,} bytes are kept in {part} for another run"
                )
            time.sleep(WAIT * 2 ** max(0, failures - 1))


def _connect(url: str, part: Path, have: int, bar: Progress) -> bool:
    """One connection. Returns whether everything has come."""
    # Some servers refuse what calls itself Python.
    request = urllib.request.Request(url, headers={"User-Agent": "mhe-fairseq-download"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        # Nothing comes after what there is: it is all, or it was not this file's.
        if error.code != 416:
            raise
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return True
        part.unlink()
        return False
    with response:
        resumed = response.status == 206
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {have}-"):
            part.unlink()
            return False
        begin = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else begin + int(length)
        if bar.tasks:
            bar.update(bar.tasks[0].id, completed=begin, total=total)
        else:
            bar.add_task(part.stem, completed=begin, total=total)
        # Without a buffer, whose rest a failed write would have written again.
        with open(part, "ab" if resumed else "wb", buffering=0) as file:
            while chunk := response.read(_CHUNK):
                _append(file, chunk, part)
                bar.advance(bar.tasks[0].id, len(chunk))
            return total is None or file.tell() == total


def _append(file: FileIO, chunk: bytes, part: Path) -> None:
    """Write all of ``chunk``; a full disk is no dropped connection."""
    left = memoryview(chunk)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError as error:
        raise DownloadError(
            f"{part} cannot be written ({error.strerror}); its content is kept for another run"
        ) from None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("url", metavar="URL")
    parser.add_argument("file", metavar="FILE", type=Path)
    parser.add_argument("--sha256", metavar="DIGEST", help="SHA-256 that the file must have")
    parser.add_argument("--md5", metavar="DIGEST", help="MD5 of the file, where no SHA-256 was published")
    parser.add_argument("--offline", metavar="DIR", type=Path, help="take the file from DIR, not from URL")
    args = parser.parse_args(argv)
    try:
        download(args.url, args.file, sha256=args.sha256, md5=args.md5, offline=args.offline)
    except (DownloadError, OSError) as error:
        print(f"download.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
