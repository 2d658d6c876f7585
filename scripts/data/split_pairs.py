#!/usr/bin/env python3
"""Take tagged text of many languages apart, for fairseq's many-to-many task.

    python scripts/data/split_pairs.py --pieces DIR --out DIR2

reads what ``prepare_translation.py --tags`` wrote, where each pair is followed by its reverse and a tag such
as ``<2de>`` before a source sentence names the target language. Writes under ``--out``, without tags:
``SPLIT.en-de.en`` and ``SPLIT.en-de.de`` of each pair, once; ``dict.txt`` without the tags; ``pairs``, of
which each is to be binarised; ``directions``, for --lang-pairs; ``langs``, for --lang-dict; and ``tested``,
the directions of the test set. A pair without validation text is left out: the task validates every pair.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import SPLITS, PrepareError, read_lines, run_script, write_whole  # noqa: E402
from scripts.data.arguments import preparing  # noqa: E402
from scripts.data.binarise import dictionary, given  # noqa: E402

#: As scripts/data/extract_corpus.py writes them.
TAG = re.compile(r"<2([^>]+)>")


def pairs_of(source: Path, target: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    """Each pair once: "aa-bb", and its two lines.

    Raises:
        PrepareError: lines without a tag, or a pair without its reverse.
    """
    rows = zip(read_lines(source), read_lines(target), strict=True)
    for number, (there, back) in enumerate(zip(rows, rows, strict=True)):
        (to, _, left), (fro, _, right) = (row[0].partition(" ") for row in (there, back))
        tags = TAG.fullmatch(to), TAG.fullmatch(fro)
        if tags[0] is None or tags[1] is None or (left, right) != (back[1], there[1]):
            raise PrepareError(
                f"lines {2 * number + 1} and {2 * number + 2} of {source} are not a pair and its reverse, "
                "each with a tag such as <2de> before it"
            )
        yield f"{tags[1][1]}-{tags[0][1]}", (left, right)


def split(folder: Path, out: Path) -> None:
    """Write what the module says.

    Raises:
        PrepareError: text that is not tagged so.
    """
    found: dict[str, list[str]] = {}
    for name in SPLITS:
        sides = [folder / "pieces" / f"{name}.{side}" for side in ("src", "tgt")]
        found[name] = []
        with ExitStack() as files:
            opened: dict[str, list[TextIO]] = {}
            for pair, lines in pairs_of(*sides):
                if pair not in opened:
                    out.mkdir(parents=True, exist_ok=True)
                    names = [out / f"{name}.{pair}.{lang}" for lang in pair.split("-")]
                    opened[pair] = [files.enter_context(path.open("w", encoding="utf-8")) for path in names]
                    found[name].append(pair)
                for file, line in zip(opened[pair], lines, strict=True):
                    file.write(f"{line}\n")
    kept = [pair for pair in found["train"] if pair in found["valid"]]
    if not kept:
        raise PrepareError(f"no pair in {folder}/pieces has both training and validation text")
    for pair in sorted({*found["train"], *found["test"]} - {*kept}):
        print(f"{pair}: no training or no validation text, left out")
    langs = sorted({lang for pair in kept for lang in pair.split("-")})
    entries = [entry for entry in given(folder / "dict.txt") if not TAG.fullmatch(entry[0])]
    write_whole(out / "dict.txt", dictionary(entries, ()))
    for name, words, between in (
        ("pairs", kept, " "),
        ("directions", _both(kept), ","),
        ("tested", _both([pair for pair in found["test"] if pair in kept]), " "),
        ("langs", langs, "\n"),
    ):
        write_whole(out / name, [(between.join(words) + "\n").encode()])


def _both(pairs: list[str]) -> list[str]:
    return [way for pair in pairs for way in (pair, "-".join(reversed(pair.split("-"))))]


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument("--pieces", type=Path, required=True, metavar="DIR", help="has pieces/ and dict.txt")
    args = parser.parse_args(argv)
    return run_script("split_pairs.py", args.out, lambda: split(args.pieces, args.out))


if __name__ == "__main__":
    sys.exit(main())
