#!/usr/bin/env python3
"""Give a trained translation model a larger dictionary, train it on for a little, and compare it with one
trained from nothing for as long.

    python scripts/study/grow_dictionary.py --source CORPUS --out larger-dictionary

The model is a variant of a study (``examples/translation/study.toml``). It is trained with a small
dictionary; `mhe convert` gives it a larger one; the command that this prints trains it on, a tenth of the
updates. As many updates from nothing are made over the same data, twice: with the study's schedule, and with
that of the printed command at the study's learning rate. All are validated and translated alike.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.study.comparison import COLUMNS, Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    generate_step,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.trained_on import (  # noqa: E402
    Trained,
    printed_line,
    row,
    train_on_step,
    validated_bits,
    validation_step,
    value_of,
    with_flags,
)
from scripts.study.translations import bootstrap, read_translations  # noqa: E402


def convert_step(small: Step, data: Path, folder: Path) -> Step:
    output = folder / "grown.pt"
    words = ["mhe", "convert", str(small.makes), "--data", str(data), "-o", str(output), "--force"]
    return Step("convert", words, output, folder / "convert.log")


def trainings(
    args: argparse.Namespace, study: Study, variant: Variant, large: tuple[Study, Folders], log: Path
) -> list[Trained]:
    """The grown model trained on, and the two from nothing."""
    line, seed, out = printed_line(log), args.seed, args.out
    updates, where = int(value_of(line, "--max-update")), large[1]
    rate = value_of(shlex.split(study.train), "--lr")
    fresh = with_flags(line, finetune_from_model=None, lr=rate, mhe_codebook=str(where.codes(variant)))
    own = train_step(replace(large[0], every=updates), where, variant, seed, updates)
    return [
        Trained("grown, trained on", train_on_step(line, out / f"grown-{seed}", seed), *large),
        Trained("from nothing, its schedule", train_on_step(fresh, out / f"nothing-{seed}", seed), *large),
        Trained("from nothing, the study's schedule", own, *large),
    ]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, convert, train on, score; the record."""
    comparison = Comparison(args, "larger-dictionary")
    study = comparison.study()
    (variant,) = study.chosen(args.variant)
    if not variant.assign:
        raise StudyError(f"--variant {args.variant} has no learned codebook; take one such as cascade")
    sizes = [replace(study, vocab_size=size) for size in (args.small, args.large)]
    places = [Folders(args.out / str(size)) for size in (args.small, args.large)]

    def run(folder: Path, steps: list[Step]) -> None:
        comparison.run(folder, steps, source=str(args.source), seed=args.seed)

    for size, where in zip(sizes, places, strict=True):
        run(where.out, prepare_steps(size, args.source, where, [variant]))
    small = Trained(
        "small", train_step(sizes[0], places[0], variant, args.seed, study.updates), sizes[0], places[0]
    )
    run(small.folder, [small.step, small.generate()])
    folder = args.out / f"converted-{args.seed}"
    grown = convert_step(small.step, places[1].data, folder)
    before = generate_step(sizes[1], places[1], folder, grown.makes, "test", small.step)
    run(folder, [grown, validation_step("valid", places[1].data, grown.makes, folder), before])
    large = trainings(args, study, variant, (sizes[1], places[1]), folder / "convert.log")
    for each in large:
        run(each.folder, [each.step, each.generate()])

    references = reference_lines(sizes[1], places[1])
    lines = {each.name: each.translations(len(references)) for each in [small, *large]}
    lines["grown"] = read_translations(folder / "test.txt", len(references))
    updates = int(value_of(large[0].step.words, "--max-update"))
    ours = large[0].name
    rows = [row("trained", study.updates, small.bits(), lines["small"], references)]
    rows.append(row("grown", 0, validated_bits(folder / "valid.log"), lines["grown"], references))
    for each in large:
        rows.append(row(each.name, updates, each.bits(), lines[each.name], references))
        if each.name != ours:
            rows[-1]["p"] = bootstrap(lines[ours], lines[each.name], references)["BLEU"]
    for number, each_row in enumerate(rows):
        each_row["vocab"] = args.large if number else args.small
    said = (folder / "convert.log").read_text(encoding="utf-8").splitlines()
    counts = [comparison.shown(line.strip()) for line in said if "symbols, now" in line]
    return comparison.record(
        about=f"A {args.variant} with a dictionary of {args.small:,} pieces given one of {args.large:,}",
        data=f"{' to '.join(study.languages)}; pieces of sentencepiece, joined; {' '.join(counts)}",
        setup=f"variant {args.variant} of {from_root(args.study)}; bits are of a piece, so those "
        "of the two dictionaries do not compare; p: that chance makes so large a difference in BLEU to the "
        "grown model (paired bootstrap)",
        seeds=str(args.seed),
        columns=[
            {"key": "model", "title": "model"},
            {"key": "vocab", "title": "pieces", "format": "{:,}"},
            *COLUMNS,
        ],
        rows=rows,
    )


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "larger-dictionary")
    add = parser.add_argument
    add("--variant", default="cascade", help="of the study, with a learned codebook (default: %(default)s)")
    add("--small", type=int, default=8000, help="pieces of the first dictionary (default: %(default)s)")
    add("--large", type=int, default=12000, help="pieces of the second one (default: %(default)s)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    return run_study("grow_dictionary.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
