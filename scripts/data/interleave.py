#!/usr/bin/env python3
"""Interleave the lines of several files: parallel text as one text for a language model.

    python scripts/data/interleave.py train.en.xz train.de.xz --out train.txt

Line 1 of each file comes first, then line 2 of each, and so on: a model sees a sentence just before its
translation. A file is plain or ``.xz``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import PrepareError, read_lines, write_whole  # noqa: E402


def interleaved(paths: list[Path]) -> Iterator[bytes]:
    """Raises:
    PrepareError: a file is missing or damaged, or they differ in length.
    """
    counts = {path: sum(1 for _ in read_lines(path)) for path in paths}
    if len(set(counts.values())) > 1:
        said = " and ".join(f"{path} has {count} lines" for path, count in counts.items())
        raise PrepareError(f"{said}; they must have the same number")
    for lines in zip(*map(read_lines, paths), strict=True):
        yield "".join(f"{line}\n" for line in lines).encode()


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--out", type=Path, required=True, help="file to write")
    args = parser.parse_args(argv)
    try:
        write_whole(args.out, interleaved(args.files))
    except (PrepareError, OSError) as error:
        print(f"interleave.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
