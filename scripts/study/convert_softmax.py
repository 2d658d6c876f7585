#!/usr/bin/env python3
"""Give a trained softmax model other heads by `mhe convert`, train each on for a little, and compare.

    python scripts/study/convert_softmax.py --source CORPUS --out converted

The model is the baseline of a study (``examples/translation/study.toml``), which is fairseq's own. It is
converted to each head of ``--heads``, and the command that `mhe convert` prints trains it on, a tenth of the
updates. With the ``softmax`` head that is the same model: what training on does by itself. All are validated
and translated alike, each by the search of its task: a cascade by the compact one.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
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
from scripts.study.trained_on import (  # noqa: E402
    Trained,
    printed_line,
    row,
    train_on_step,
    validated_bits,
    validation_step,
    value_of,
)
from scripts.study.translations import bootstrap, read_translations  # noqa: E402

HEADS = ("softmax", "cascade", "sampling")


def convert_step(head: str, before: Step, data: Path, folder: Path) -> Step:
    output = folder / "converted.pt"
    words = ["mhe", "convert", str(before.makes), "--data", str(data), "--head", head, "-o", str(output)]
    return Step("convert", [*words, "--force"], output, folder / "convert.log")


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, convert, train on, score; the record."""
    comparison = Comparison(args, "converted")
    study = comparison.study()
    study = replace(study, every=study.updates)
    (variant,) = study.chosen(study.baseline)
    where = Folders(args.out)

    def run(folder: Path, steps: list[Step]) -> None:
        comparison.run(folder, steps, source=str(args.source), seed=args.seed)

    run(where.out, prepare_steps(study, args.source, where, [variant]))
    stock = Trained("stock", train_step(study, where, variant, args.seed, study.updates), study, where)
    run(stock.folder, [stock.step, stock.generate()])
    references = reference_lines(study, where)
    before = stock.translations(len(references))
    rows = [row("fairseq's softmax", study.updates, stock.bits(), before, references)]
    for head in args.heads:
        folder = args.out / f"to-{head}-{args.seed}"
        converted = convert_step(head, stock.step, where.data, folder)
        valid = validation_step("valid", where.data, converted.makes, folder)
        run(folder, [converted, valid])
        line = printed_line(folder / "convert.log")
        on = Trained(head, train_on_step(line, folder / "trained-on", args.seed), study, where)
        # Translated as the model that it becomes: the task is in the printed command.
        test = generate_step(study, where, folder, converted.makes, "test", on.step)
        run(folder, [converted, valid, test])
        run(on.folder, [on.step, on.generate()])
        bits = validated_bits(folder / "valid.log")
        plain = read_translations(folder / "test.txt", len(references))
        rows.append(row(f"converted to {head}", 0, bits, plain, references))
        rows[-1]["p"] = _chance(plain, before, references)
        after = on.translations(len(references))
        updates = int(value_of(line, "--max-update"))
        rows.append(row(f"converted to {head}, trained on", updates, on.bits(), after, references))
        rows[-1]["p"] = _chance(after, before, references)
    return comparison.record(
        about="A trained softmax model given other heads by mhe convert, and trained on",
        data=study.data,
        setup=f"variant {study.baseline} of {from_root(args.study)}; p: that chance makes so large a "
        "difference in BLEU to fairseq's softmax (paired bootstrap), none if all translations are the same",
        seeds=str(args.seed),
        columns=[{"key": "model", "title": "model"}, *COLUMNS],
        rows=rows,
    )


def _chance(lines: list[str], before: list[str], references: list[str]) -> float | None:
    """None where the translations are the same."""
    return None if lines == before else bootstrap(before, lines, references)["BLEU"]


def heads(text: str) -> list[str]:
    found = text.split(",")
    if len(set(found)) < len(found) or not set(found) <= set(HEADS):
        raise argparse.ArgumentTypeError(f"takes different ones of {', '.join(HEADS)}; got {text}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "converted")
    add = parser.add_argument
    add("--heads", type=heads, default=list(HEADS), help=f"separated by commas (default: {','.join(HEADS)})")
    add("--seed", type=int, default=1, help="default: %(default)s")
    return run_study("convert_softmax.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
