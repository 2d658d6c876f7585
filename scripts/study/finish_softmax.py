#!/usr/bin/env python3
"""What a cascade, or another head, gains when the end of its training is done as a softmax.

    python scripts/study/finish_softmax.py --source CORPUS --out finished --updates 8000 --last 1000

Trains a study's softmax and its cascade (``examples/translation/study.toml``), or other ``--variants``. In
the last updates the learning rate falls to zero, and those are done three times: by the softmax, by the
cascade, and by what `mhe export --body` makes of the cascade before them, fairseq's softmax tied to the same
embeddings, with a new optimiser. The last checkpoint of each is validated and translated with.

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
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    parse_seeds,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.trained_on import Trained, flag, value_of, with_flags  # noqa: E402
from scripts.study.translations import BESIDE, against  # noqa: E402

COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "before", "title": "bits a piece before the end", "format": "{:.3f}"},
    {"key": "bits", "title": "after it", "format": "{:.3f}"},
    *BESIDE,
]

#: Updates in which a new optimiser's rate rises.
WARMUP = 20


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


def trainings(
    study: Study, where: Folders, softmax: Variant, others: list[Variant], seed: int, last: int
) -> list[tuple[str, list[Step], Trained, Trained]]:
    """Name of the row, steps before the end, the first part, and the end."""
    before, found = study.updates - last, []

    def part(variant: Variant, suffix: str, updates: int) -> Step:
        return train_step(study, where, replace(variant, name=variant.name + suffix), seed, updates)

    def row(name: str, steps: list[Step], end: Step) -> None:
        found.append((name, steps, Trained(name, first, study, where), Trained(name, end, study, where)))

    for variant in (softmax, *others):
        first = part(variant, "-first", before)
        whole = part(variant, "", study.updates)
        row(variant.name, [first], ending(whole, first.makes, before, last, is_new=False))
        if variant is softmax:
            continue
        start = first.makes.parent.parent / "start.pt"
        words = ["mhe", "export", str(first.makes), "--body", "-o", str(start)]
        export = Step("export", words, start, start.with_name("export.log"))
        whole = part(replace(softmax, name=variant.name), "-as-softmax", study.updates)
        end = ending(whole, start, before, last, is_new=True)
        row(f"{variant.name}, its end as a softmax", [first, export], end)
    return found


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, export, train on, score; the record."""
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
        for name, steps, first, end in trainings(study, where, softmax, others, seed, args.last):
            comparison.run(first.folder, steps, source=source, seed=seed)
            comparison.run(end.folder, [end.step, end.generate()], source=source, seed=seed)
            found = rows.setdefault(name, Scored())
            found.before.append(first.bits())
            found.bits.append(end.bits())
            found.lines.append(end.translations(len(references)))
    return comparison.record(
        about="A cascade finished as a softmax",
        data=f"{' to '.join(study.languages)}; {study.vocab_size:,} pieces of sentencepiece, joined",
        setup=f"variants {', '.join(each.name for each in [softmax, *others])} of {from_root(args.study)}, "
        f"{study.updates:,} updates; the learning rate falls linearly to zero over the last {args.last:,}, "
        "which those as a softmax begin with a new optimiser; last checkpoints; p: that chance makes so "
        "large a difference in BLEU to the softmax of the seed (paired bootstrap)",
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
    add("--seeds", default="1", help="default: %(default)s")
    return run_study("finish_softmax.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
