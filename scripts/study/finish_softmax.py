#!/usr/bin/env python3
"""What a cascade, or another head, gains when the end of its training is done as a softmax.

    python scripts/study/finish_softmax.py --source CORPUS --out finished --updates 8000 --last 1000

Trains a study's softmax and its cascade (``examples/translation/study.toml``), or other ``--variants``. In
the last updates the learning rate falls to zero, and those are done by the softmax, by the cascade, and, with
a new optimiser, by two softmaxes made of the cascade before them: what `mhe export --body` writes, fairseq's
softmax tied to the same embeddings, and what `mhe convert --head softmax` fits to the cascade, which is not
tied. The cascade is converted after its end, too, and not trained on. A sampling head is a softmax, and has
its end once more with the exact loss. With ``--own`` each has its own end, and that is all. The last
checkpoint of each is validated and translated with.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field, replace
from math import sqrt
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.study.averaged import exactly  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.convert_softmax import convert_step  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    generate_step,
    parse_seeds,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.trained_on import (  # noqa: E402
    Trained,
    flag,
    validated_bits,
    validation_step,
    value_of,
    with_flags,
)
from scripts.study.translations import BESIDE, against, read_translations  # noqa: E402

COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "before", "title": "bits a piece before the end", "format": "{:.3f}"},
    {"key": "bits", "title": "after it", "format": "{:.3f}"},
    *BESIDE,
]

#: Updates in which a new optimiser's rate rises.
WARMUP = 20

#: Of a model whose output layer is its embeddings.
ALL, DECODER = TIED = ("--share-all-embeddings", "--share-decoder-input-output-embed")


@dataclass
class Scored:
    """A row: bits before the end and after it, and translations of the test set, of each seed."""

    before: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)


def rate_after(words: list[str], updates: int) -> float:
    """The learning rate that a command has after so many updates.

    Raises:
        StudyError: it is of another schedule than fairseq's fixed or inverse_sqrt.
    """
    scheduler = value_of(words, "--lr-scheduler") if "--lr-scheduler" in words else "fixed"
    rate = float(value_of(words, "--lr"))
    if scheduler == "fixed":
        return rate
    if scheduler != "inverse_sqrt":
        raise StudyError(
            f"--study has --lr-scheduler {scheduler}; a rate that falls to zero at the end is for those with "
            "inverse_sqrt or fixed"
        )
    warmup = int(value_of(words, "--warmup-updates"))
    return rate * min(updates / warmup, sqrt(warmup / updates))


def ending(step: Step, start: Path, before: int, last: int, is_new: bool) -> Step:
    """A training that goes on from ``start`` while its rate falls to zero.

    Args:
        step: the whole training, of ``before + last`` updates.
        start: checkpoint after ``before`` updates.
        is_new: with a new optimiser, which counts its own updates.
    """
    done, all_of_it = (0, last) if is_new else (before, before + last)
    # Linear: what it would have at the beginning to be at the schedule's rate now.
    rate = rate_after(step.words, before) * all_of_it / last
    given = {name: None for name in ("lr_scheduler", "warmup_updates") if flag(name) in step.words}
    words = with_flags(step.words, lr=f"{rate:.6g}", max_update=str(all_of_it), **given)
    words += ["--lr-scheduler", "polynomial_decay", "--end-learning-rate", "0"]
    warmup = 0 if done else min(WARMUP, last // 2)
    words += ["--total-num-update", str(all_of_it), "--warmup-updates", str(warmup)]
    words += ["--restore-file", str(start), "--reset-lr-scheduler", "--reset-meters"]
    return replace(step, words=[*words, "--reset-optimizer", "--reset-dataloader"] if is_new else words)


@dataclass(frozen=True)
class Row:
    """A training and its end.

    Attributes:
        name: of its row.
        first: the training before the end.
        made: what the end begins with, made of that; none: the training itself.
        end: the training that follows.
        written: after the end another model is made, and is what is scored: its command, and its validation.
    """

    name: str
    first: Trained
    made: list[Step]
    end: Trained
    written: tuple[Step, Step] | None = None

    def generate(self) -> Step:
        if self.written is None:
            return self.end.generate()
        end, (checkpoint, validation) = self.end, self.written
        folder = validation.makes.parent
        return generate_step(end.study, end.where, folder, checkpoint.makes, "test", end.step)

    def bits(self) -> float:
        return self.end.bits() if self.written is None else validated_bits(self.written[1].makes)


def row_of(study: Study, where: Folders, variant: Variant, seed: int, last: int) -> Row:
    """A variant, with an end of its own."""
    before, name = study.updates - last, variant.name
    first = train_step(study, where, replace(variant, name=f"{name}-first"), seed, before)
    end = ending(train_step(study, where, variant, seed, study.updates), first.makes, before, last, False)
    return Row(name, Trained("before", first, study, where), [], Trained(name, end, study, where))


def rows_of(
    study: Study, where: Folders, softmax: Variant, variant: Variant, seed: int, last: int
) -> list[Row]:
    """What there is to compare of another variant."""
    own = row_of(study, where, variant, seed, last)
    folder = own.first.folder

    def written(step: Step, name: str, *flags: str) -> Step:
        words = ["mhe", "export", str(step.makes), "-o", str(folder / f"{name}.pt"), "--force", *flags]
        return Step(f"export-{name}", words, folder / f"{name}.pt", folder / f"{name}.log")

    def as_softmax(name: str, made: list[Step], ties: str | None) -> Row:
        alike = replace(softmax, name=f"{variant.name}-{name}")
        whole = train_step(study, where, alike, seed, study.updates)
        words = [word for word in whole.words if word not in TIED]
        whole = replace(whole, words=words if ties is None else [*words, ties])
        end = ending(whole, made[-1].makes, study.updates - last, last, is_new=True)
        title = f"{variant.name}, {name}, its end as a softmax"
        return Row(title, own.first, made, Trained(title, end, study, where))

    if "--mhe-head sampling" in variant.train:
        # Outside of training it is a softmax already.
        exact, _ = exactly(variant, f"{variant.name}-exact", last / study.updates, study.updates)
        whole = train_step(study, where, exact, seed, study.updates)
        end = ending(whole, own.first.step.makes, study.updates - last, last, is_new=False)
        name = f"{variant.name}, its end exact"
        return [own, Row(name, own.first, [], Trained(name, end, study, where))]
    converted = convert_step("softmax", own.first.step, where.data, folder)
    after = own.end.folder.with_name(own.end.folder.name + "-converted")
    at_end = convert_step("softmax", own.end.step, where.data, after)
    validation = validation_step("valid", where.data, at_end.makes, after)
    # What a cascade's encoder reads is a map of what its decoder reads, where that is not told otherwise.
    is_exact = "--mhe-tie exact" in variant.train or "--mhe-head cascade" not in variant.train
    return [
        own,
        replace(own, name=f"{variant.name}, converted after its end", written=(at_end, validation)),
        as_softmax("exported", [written(own.first.step, "body", "--body")], ALL if is_exact else DECODER),
        as_softmax("converted", [converted, written(converted, "stock")], ties=None),
    ]


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, convert, train on, score; the record."""
    comparison = Comparison(args, "finished")
    study = comparison.study()
    if not 0 < args.last < study.updates:
        raise StudyError(f"--last must be 1 to {study.updates - 1}, below --updates; got {args.last}")
    softmax, *others = study.chosen(f"{study.baseline},{args.variants}", "--variants")
    where, source = Folders(args.out), str(args.source)
    comparison.run(where.out, prepare_steps(study, args.source, where, [softmax, *others]), source=source)
    references = reference_lines(study, where)
    rows: dict[str, Scored] = {}
    for seed in parse_seeds(args.seeds):
        found = [row_of(study, where, softmax, seed, args.last)]
        for variant in others:
            if args.own:
                found.append(row_of(study, where, variant, seed, args.last))
            else:
                found += rows_of(study, where, softmax, variant, seed, args.last)
        for row in found:
            first, end = row.first.folder, row.end.folder
            comparison.run(first, [row.first.step, *row.made], source=source, seed=seed)
            comparison.run(end, [row.end.step], source=source, seed=seed)
            generate = row.generate()
            scored = generate.makes.parent
            comparison.run(scored, [*(row.written or []), generate], source=source, seed=seed)
            own = rows.setdefault(row.name, Scored())
            own.before.append(row.first.bits())
            own.bits.append(row.bits())
            own.lines.append(read_translations(scored / "test.txt", len(references)))
    begin = "" if args.own else "which those as a softmax begin with a new optimiser; "
    return comparison.record(
        about="Trainings whose rate falls to zero" if args.own else "The end of a training as a softmax",
        data=study.data,
        setup=f"variants {', '.join(each.name for each in [softmax, *others])} of {from_root(args.study)}, "
        f"{study.updates:,} updates; the learning rate falls linearly to zero over the last {args.last:,}; "
        f"{begin}last checkpoints; p: that chance makes so large a difference in BLEU to the softmax of the "
        "seed (paired bootstrap)",
        seeds=args.seeds,
        columns=COLUMNS,
        rows=made_rows(rows, references),
    )


def made_rows(rows: dict[str, Scored], references: list[str]) -> list[dict[str, Any]]:
    """Of the record; the first is what others are compared with."""
    base, made = next(iter(rows.values())), []
    for name, own in rows.items():
        beside, _ = against(own.lines, None if own is base else base.lines, references)
        made.append({"model": name, "before": spread(own.before), "bits": spread(own.bits), **beside})
    return made


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "finished")
    add = parser.add_argument
    add("--vocab-size", type=int, help="pieces of the dictionary (default: the study's)")
    add("--variants", default="cascade", help="whose heads are tied, by commas (default: %(default)s)")
    add("--last", type=int, default=1000, help="updates of the end (default: %(default)s)")
    add("--own", action="store_true", help="ends of each head's own only, whatever the head")
    add("--seeds", default="1", help="default: %(default)s")
    return run_study("finish_softmax.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
