#!/usr/bin/env python3
"""Score the translations of fairseq-generate against the original test set.

    python scripts/study/score_translations.py generate-test.txt --reference test.de --name NAME \\
        --out hypotheses.de

checks that every sentence of the test set was translated, prints BLEU and chrF2 with sacrebleu's
signatures, and writes the translations in the order of the set. ``--tags``, for a corpus of many languages,
prints a line for each direction.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import PrepareError, read_lines, write_whole  # noqa: E402
from scripts.common.tokens import NORMALIZERS  # noqa: E402
from scripts.study.translations import Scores, TranslationError, read_translations, score  # noqa: E402

#: How sacrebleu tells words apart in a language that has no spaces between them.
TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char", "km": "char", "my": "char", "dz": "char"}


def detokenized(lines: list[str], language: str) -> list[str]:
    """Words of Moses as text."""
    from sacremoses import MosesDetokenizer  # type: ignore[import-untyped]

    detokenizer = MosesDetokenizer(language)
    return [str(detokenizer.detokenize(line.split(), unescape=False)) for line in lines]


def told(name: str, count: int, scores: Scores) -> str:
    return (
        f"{name}: test set of {count:,} sentences: BLEU {scores.bleu:.2f} (brevity penalty "
        f"{scores.brevity:.3f}), chrF2 {scores.chrf:.2f}"
    )


def directions(name: str, translations: list[str], references: list[str], tags: list[str]) -> None:
    """A line for each direction.

    A pair's two directions follow each other line by line, so a line's partner has the other language's tag.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for number, tag in enumerate(tags):
        groups.setdefault((tags[number ^ 1], tag), []).append(number)
    sums = [0.0, 0.0]
    signatures = {}
    for (source, target), numbers in groups.items():
        languages = source[2:-1], target[2:-1]
        tokenize = TOKENIZERS.get(languages[1], "13a")
        mine = [[column[n] for n in numbers] for column in (translations, references)]
        scores = score(mine[0], mine[1], tokenize=tokenize)
        print(told(f"{name}, {languages[0]} to {languages[1]}", len(numbers), scores))
        signatures.update(
            {f"BLEU ({tokenize})": scores.signatures["BLEU"], "chrF2": scores.signatures["chrF2"]}
        )
        sums = [total + value for total, value in zip(sums, (scores.bleu, scores.chrf), strict=True)]
    bleu, chrf = (total / len(groups) for total in sums)
    print(
        f"{name}: mean of {len(groups)} directions, {len(tags):,} sentences: "
        f"BLEU {bleu:.2f}, chrF2 {chrf:.2f}"
    )
    for metric, signature in sorted(signatures.items()):
        print(f"  {metric}: {signature}")


def put_together(folder: Path, tags: list[str]) -> list[str]:
    """The translations of all directions in the order of the test set, from a file of each direction.

    Raises:
        TranslationError: a direction without its file, or one that lacks a translation.
    """
    of = [f"{tags[number ^ 1][2:-1]}-{tag[2:-1]}" for number, tag in enumerate(tags)]
    left = {
        way: iter(read_translations(folder / way / "generate-test.txt", of.count(way)))
        for way in dict.fromkeys(of)
    }
    return [next(left[way]) for way in of]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "results",
        type=Path,
        metavar="GENERATED",
        help="generate-test.txt of fairseq-generate --results-path; with --tags also a folder that has "
        "AA-BB/generate-test.txt of every direction",
    )
    add("--reference", type=Path, required=True, help="target side of the test set, before any preparation")
    add("--name", required=True, help="name to print before the scores")
    add("--out", type=Path, required=True, help="file for the translations")
    add(
        "--lowercase",
        action="store_true",
        help="case-insensitive BLEU and chrF2, for lowercased translations",
    )
    add("--detokenize", metavar="LANG", help="the translations are words of Moses; detokenise them")
    add("--normalize", choices=sorted(NORMALIZERS), help="also score with the reference's letters normalised")
    add(
        "--tags",
        type=Path,
        help="target language of each line of the test set, for a corpus of many languages",
    )
    args = parser.parse_args(argv)
    try:
        references = list(read_lines(args.reference, blank=True))
        apart = args.tags is not None and args.results.is_dir()
        translations = [] if apart else read_translations(args.results, len(references))
        if args.detokenize:
            translations = detokenized(translations, args.detokenize)
        if args.tags:
            tags = list(read_lines(args.tags))
            if len(tags) != len(references) or len(tags) % 2:
                raise TranslationError(
                    f"{args.tags} has {len(tags)} lines and {args.reference} has {len(references)}; "
                    "they must have the same, even number"
                )
            if apart:
                translations = put_together(args.results, tags)
            directions(args.name, translations, references, tags)
        else:
            scores = score(translations, references, args.lowercase)
            print(told(args.name, len(references), scores))
            if args.normalize:
                table = str.maketrans(NORMALIZERS[args.normalize])
                again = score(translations, [line.translate(table) for line in references], args.lowercase)
                print(told(f"{args.name}, reference normalised ({args.normalize})", len(references), again))
            for metric, signature in scores.signatures.items():
                print(f"  {metric}: {signature}")
        write_whole(args.out, (f"{line}\n".encode() for line in translations))
    except (TranslationError, PrepareError, OSError) as error:
        print(f"score_translations.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
