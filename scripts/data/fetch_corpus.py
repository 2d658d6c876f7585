#!/usr/bin/env python3
"""Download every archive of a parallel corpus, with the right checksum, or say which is not available.

    python scripts/data/fetch_corpus.py examples/translation/wmt14_en_de/corpus.toml --out DIR

What was downloaded so far is kept, even after a kill; another run continues from there.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import PrepareError  # noqa: E402
from scripts.data.corpus import Archive, load  # noqa: E402
from scripts.data.download import DownloadError, download  # noqa: E402


def fetch(archive: Archive, out: Path, mirror: str | None = None, offline: Path | None = None) -> None:
    """One archive to ``out``.

    Args:
        archive: corpus.toml: which archives.
        out: folder for it.
        mirror: an address that has the file, too, in place of its own.
        offline: a folder that has it.

    Raises:
        DownloadError: it cannot be had, or is not the right one.
    """
    url = archive.url if mirror is None else f"{mirror.rstrip('/')}/{archive.file}"
    if archive.sha256 is None and archive.md5 is None:
        print(f"{archive.file}: no checksum was published; its contents are checked when it is unpacked")
    download(
        url,
        out / archive.file,
        sha256=archive.sha256,
        md5=archive.md5,
        offline=offline,
        offline_name=archive.file,
    )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS.toml", help="which archives")
    parser.add_argument("--out", type=Path, required=True, help="folder for the archives")
    parser.add_argument("--languages", metavar="L,L", help="only these, of a corpus of many languages")
    parser.add_argument("--mirror", metavar="URL", help="take every file from URL/NAME")
    parser.add_argument(
        "--offline", type=Path, metavar="DIR", help="take every file from DIR, none from the network"
    )
    parser.add_argument(
        "--checksums",
        type=Path,
        metavar="FILE",
        help="written by sha256sum; used in place of the checksums in corpus.toml",
    )
    args = parser.parse_args(argv)
    try:
        corpus = load(args.corpus, args.languages, args.checksums)
        archives = list(corpus.archives.values())
        for number, archive in enumerate(archives, start=1):
            if len(archives) > 1:
                print(f"{number} of {len(archives)}: {archive.url}")
            fetch(archive, args.out, args.mirror, args.offline)
    except (DownloadError, PrepareError, OSError, shutil.Error) as error:
        print(f"fetch_corpus.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
