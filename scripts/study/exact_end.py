#!/usr/bin/env python3
"""What a sampling head gains when the end of its training is done with the exact softmax.

    python scripts/study/exact_end.py --source CORPUS --out exact-end --seeds 1,2,3

Trains a study's softmax and its sampling head (``examples/translation/study.toml``), or other ``--variants``,
then the last updates of a sampling head once more for each of ``--shares``, with `--mhe-exact-last`. These
trainings share their beginning: each starts from a checkpoint of the first, as a training that was
interrupted there. Of each the last checkpoints are averaged, validated and translated with.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.study.averaged import AVERAGED, begun, exactly, link_checkpoints, scored_rows, scored_steps  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    parse_seeds,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.trained_on import with_flags  # noqa: E402
from scripts.study.translations import BESIDE  # noqa: E402

#: Checkpoints that a training saves.
SAVED = 40

COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "share", "title": "exact updates", "format": "{:.0%}"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    *BESIDE,
    {"key": "length", "title": "length, of the softmax's", "format": "{:.3f}"},
]


def often_saved(study: Study) -> Study:
    """With the updates between checkpoints that ``SAVED`` of them need.

    Raises:
        StudyError: its updates cannot be divided so.
    """
    if study.updates % SAVED:
        raise StudyError(f"--updates must be a multiple of {SAVED}, got {study.updates}")
    return replace(study, every=study.updates // SAVED)


def training(study: Study, where: Folders, variant: Variant, seed: int) -> Step:
    """A training that is saved ``SAVED`` times, and not validated."""
    step = train_step(study, where, variant, seed, study.updates)
    words = with_flags(step.words, keep_interval_updates="-1", validate_interval=None)
    words = with_flags(words, validate_interval_updates=None)
    return replace(step, words=[*words, "--disable-validation"])


@dataclass(frozen=True)
class Row:
    """A model of one seed, its last updates done one way.

    Attributes:
        model: name of its variant.
        share: of its updates, done exactly; None: the softmax.
        folder: its checkpoints are below.
        steps: that train and score it.
        before: called before a step is run.
    """

    model: str
    share: float | None
    folder: Path
    steps: list[Step]
    before: Callable[[], None] | None = None


def softmax_row(study: Study, where: Folders, softmax: Variant, seed: int) -> Row:
    step = training(study, where, softmax, seed)
    folder = step.makes.parent.parent
    return Row(softmax.name, None, folder, [step, *scored_steps(study, where, step, folder)])


def rows_of(
    study: Study, where: Folders, sampling: Variant, seed: int, shares: Iterable[float]
) -> Iterator[Row]:
    """A sampling head without an exact end, and with one of each share. An end begins with a checkpoint of
    the first, which is to be trained before the next row is asked for."""
    first = study.updates - (AVERAGED - 1) * study.every
    whole = training(study, where, replace(sampling, train=f"{sampling.train} --mhe-exact-last 0"), seed)
    earlier = whole.makes.parent
    for share in sorted({0.0, *shares}):
        step, before = whole, None
        if share:
            variant, end = exactly(sampling, f"{sampling.name}-{share}", share, study.updates)
            step = begun(training(study, where, variant, seed), earlier, end)
            before = partial(link_checkpoints, step.makes.parent, earlier, first, end)
        folder = step.makes.parent.parent
        steps = [step, *scored_steps(study, where, step, folder)]
        yield Row(sampling.name, share, folder, steps, before)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, average, score; the record."""
    comparison = Comparison(args, "exact-end")
    study = often_saved(comparison.study())
    softmax, *others = study.chosen(f"{study.baseline},{args.variants}", "--variants")
    where, source = Folders(args.out), str(args.source)
    comparison.run(where.out, prepare_steps(study, args.source, where, [softmax, *others]), source=source)
    folders: dict[tuple[str, float | None], list[Path]] = {}
    for seed in parse_seeds(args.seeds):
        heads = (rows_of(study, where, each, seed, args.shares) for each in others)
        for row in chain([softmax_row(study, where, softmax, seed)], *heads):
            comparison.run(row.folder, row.steps, row.before, source=source, seed=seed)
            folders.setdefault((row.model, row.share), []).append(row.folder)
    return comparison.record(
        about="A sampling head whose last updates are those of the exact softmax",
        data=study.data,
        setup=f"variants {', '.join(each.name for each in [softmax, *others])} of {from_root(args.study)}, "
        f"{study.updates:,} updates; mean of the last {AVERAGED} checkpoints, {study.every} updates apart; "
        "p: that chance makes so large a difference in BLEU to the softmax of the seed (paired bootstrap)",
        seeds=args.seeds,
        columns=COLUMNS,
        rows=made_rows(folders, reference_lines(study, where)),
    )


def made_rows(
    folders: dict[tuple[str, float | None], list[Path]], references: list[str]
) -> list[dict[str, Any]]:
    """Of the record; the first is what others are compared with."""
    rows = scored_rows(folders, references)
    return [
        {"model": model, "share": share, **row} for (model, share), row in zip(folders, rows, strict=True)
    ]


def shares(text: str) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or len(set(found)) < len(found) or not all(0 <= share < 1 for share in found):
        raise argparse.ArgumentTypeError(f"takes different numbers from 0 to 1; got {text}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "exact-end")
    add = parser.add_argument
    add("--vocab-size", type=int, help="pieces of the dictionary (default: the study's)")
    add("--variants", default="sampling", help="with sampling heads, by commas (default: %(default)s)")
    add("--shares", type=shares, default=[0, 0.05, 0.1, 0.2], help="default: 0,0.05,0.1,0.2")
    add("--seeds", default="1", help="default: %(default)s")
    return run_study("exact_end.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
