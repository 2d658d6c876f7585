#!/usr/bin/env python3
"""Extract the text of a parallel corpus from its archives, a sentence a line.

    python scripts/data/extract_corpus.py corpus.toml --archives DOWNLOADED --out DIR

writes ``{train,valid,test}.{source,target}``. A pair with an empty side, or one that is not UTF-8, is left
out of the training and validation sets; a test set keeps every sentence. In a corpus of many languages each
pair is used in both directions, and ``SPLIT.tags`` has the tag of each line's target language.

Files are written under another name and renamed when complete. Files that exist are kept.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import SPLITS, PrepareError, keep_settings, run_script  # noqa: E402
from scripts.common.progress import watched  # noqa: E402
from scripts.data.corpus import Corpus, Part, load, tag  # noqa: E402
from scripts.data.parallel import pairs, unpack, write_together  # noqa: E402


def extract(corpus: Corpus, archives: Path, out: Path, temperature: float = 1.0) -> None:
    """Make the text files.

    Args:
        corpus: what there is.
        archives: folder of the downloaded files.
        out: folder to write.
        temperature: of a corpus of many languages; a language with n pairs has a share of the training set
            in proportion to n ** (1 / temperature): smaller ones are repeated.

    Raises:
        PrepareError: an archive is missing or damaged, lacks a file, or has one side longer than the other.
    """
    if temperature < 1:
        raise PrepareError(f"--temperature must be at least 1, got {temperature}")
    known = {
        name: (archive.sha256 or archive.md5 or archive.url) for name, archive in corpus.archives.items()
    }
    parts: list[object] = [[part.split, part.archive, *part.files, part.format] for part in corpus.parts]
    keep_settings(out / "extracted.json", {"archives": known, "parts": parts, "temperature": temperature})
    raw = out / "raw"
    for split in SPLITS:
        mine = [part for part in corpus.parts if part.split == split]
        columns = [corpus.source, corpus.target, *(["tags"] if corpus.many else [])]
        paths = tuple(out / f"{split}.{column}" for column in columns)
        if not mine or all(path.is_file() for path in paths):
            if mine:
                print(f"{paths[0]}: already there")
            continue
        for part in watched(mine, f"{split}: unpacking", len(mine)):
            wanted = {name: _raw(raw, part, name) for name in part.files}
            unpack(archives / corpus.archives[part.archive].file, wanted)
        rows = _rows(mine, raw, corpus.many, temperature if split == "train" else 1.0)
        count = write_together(paths, watched(rows, f"{split}: writing", None))
        print(f"{out / split}: {count:,} pairs")
    shutil.rmtree(raw, ignore_errors=True)


def _raw(raw: Path, part: Part, name: str) -> Path:
    return raw / part.archive / name.replace("/", "_")


def _rows(parts: list[Part], raw: Path, many: bool, temperature: float) -> Iterator[tuple[str, ...]]:
    sizes = {}
    if temperature > 1:
        for part in parts:
            sizes[part] = sum(1 for _ in _pairs(part, raw))
    for part in parts:
        times = (max(sizes.values()) / sizes[part]) ** (1 - 1 / temperature) if sizes else 1.0
        for left, right in _repeated(_pairs(part, raw), times):
            if many:
                yield left, right, tag(part.languages[1])
                yield right, left, tag(part.languages[0])
            else:
                yield left, right


def _pairs(part: Part, raw: Path) -> Iterator[tuple[str, str]]:
    source, target = (_raw(raw, part, name) for name in part.files)
    return pairs((source, target), part.format, strict=part.split == "test")


def _repeated(rows: Iterator[tuple[str, str]], times: float) -> Iterator[tuple[str, str]]:
    """Each row ``times`` times, on average: the surplus is spread evenly."""
    owed = 0.0
    for row in rows:
        owed += times
        # A sum of many floats; the share of one must not be lost to rounding.
        whole = int(owed + 1e-9)
        owed -= whole
        for _ in range(whole):
            yield row


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, metavar="CORPUS.toml", help="what the archives contain")
    parser.add_argument(
        "--archives",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder of the archives, from fetch_corpus.py",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--languages", metavar="L,L", help="only these, of a corpus of many languages")
    parser.add_argument("--checksums", type=Path, metavar="FILE", help="as for fetch_corpus.py")
    parser.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        metavar="T",
        help="repeat small languages (default: %(default)s)",
    )
    args = parser.parse_args(argv)

    def work() -> None:
        corpus = load(args.corpus, args.languages, args.checksums)
        extract(corpus, args.archives, args.out, args.temperature)

    return run_script("extract_corpus.py", args.out, work)


if __name__ == "__main__":
    sys.exit(main())
