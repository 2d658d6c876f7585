#!/usr/bin/env python3
"""Whether the heads stay ahead: a study's variants trained for long, scored again and again on the way.

    python scripts/study/long_training.py --source CORPUS --out long --updates 20000 --seeds 1,2

Trains variants of a study (``examples/translation/study.toml``) with the same data, batches and optimiser,
and saves and validates a checkpoint every ``--every`` updates. After every ``--points`` updates the last
checkpoints are averaged, validated and translated with. A sampling head is trained without an exact end; the
last updates, ``--exact`` of all, are then done once more, exactly, from the checkpoint where they begin.

Variants may be trained for fewer updates than others: ``--only softmax,cascade,sampling@12000``.
``--out``/record.json has what is shown on the page of results, ``--out``/curves.png the perplexities of the
first seed over updates and over seconds. What is done is not done again, and with more ``--updates`` the
trainings go on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.curves import Curve, LogError, Point, logged, read_log  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.study.averaged import AVERAGED, begun, exactly, link_checkpoints, scored_steps  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.plot_curves import PlotError, draw  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    parse_seeds,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import StudyError, Variant  # noqa: E402
from scripts.study.trained_on import validated_bits, with_flags  # noqa: E402
from scripts.study.translations import BESIDE, against, read_translations  # noqa: E402

COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "updates", "title": "updates", "format": "{:,}"},
    {"key": "minutes", "title": "minutes", "format": "{:.0f}"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    *BESIDE,
    {"key": "length", "title": "length", "format": "{:.3f}"},
]


@dataclass
class Scored:
    """A model after so many updates.

    Attributes:
        name: of its row.
        updates: done.
        seconds: of an update, of each seed.
        bits: a piece, of each seed.
        lines: translations of the test set, of each seed.
    """

    name: str
    updates: int
    seconds: list[float] = field(default_factory=list)
    bits: list[float] = field(default_factory=list)
    lines: list[list[str]] = field(default_factory=list)


class LongTraining:
    """Trains and scores the variants of a study.

    Args:
        args: of ``main``.

    Raises:
        StudyError: bad flags.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.comparison = args, Comparison(args, "long")
        self.study = replace(self.comparison.study(), every=args.every)
        self.seeds = parse_seeds(args.seeds)
        if args.every < 1 or args.points % args.every or not 0 < AVERAGED * args.every <= args.points:
            raise StudyError(
                f"--points must be a multiple of --every and at least {AVERAGED} times as many, for "
                f"{AVERAGED} checkpoints to average; got {args.points} and {args.every}"
            )
        # The updates of each variant, in the order of --only.
        self.lengths = lengths(args.only, self.study.updates, args.points)
        self.variants = self.study.chosen(",".join(self.lengths))
        self.where, self.source = Folders(args.out), str(args.source)
        self.scored: dict[tuple[str, int], Scored] = {}
        self.curves: list[Curve] = []

    def run(self) -> None:
        """Everything, one after the other."""
        steps = prepare_steps(self.study, self.args.source, self.where, self.variants)
        self.comparison.run(self.where.out, steps, source=self.source)
        self.references = reference_lines(self.study, self.where)
        for variant in self.variants:
            for seed in self.seeds:
                self._one(variant, seed)

    def _training(self, variant: Variant, seed: int, updates: int) -> Step:
        """Every checkpoint is kept."""
        step = train_step(self.study, self.where, variant, seed, updates)
        return replace(step, words=with_flags(step.words, keep_interval_updates="-1"))

    def _one(self, variant: Variant, seed: int) -> None:
        updates, share, every = self.lengths[variant.name], self.args.exact, self.args.every
        step = self._training(variant, seed, updates)
        self.comparison.run(step.makes.parent.parent, [step], source=self.source, seed=seed)
        assert step.output is not None
        seconds = pace(step.output)
        if seed == self.seeds[0]:
            points = read_log(step.output, variant.name).validation
            points = [Point(each.update, each.update * seconds, each.perplexity) for each in points]
            self.curves.append(Curve(variant.name, [], points))
        for update in range(self.args.points, updates + 1, self.args.points):
            self._score(variant.name, seconds, step, update, seed)
        if share and "--mhe-head sampling" in variant.train:
            exact, end = exactly(variant, f"{variant.name}-exact-{updates}", share, updates)
            last = begun(self._training(exact, seed, updates), step.makes.parent, end)
            first = updates - (AVERAGED - 1) * every
            linked = partial(link_checkpoints, last.makes.parent, step.makes.parent, first, end)
            self.comparison.run(last.makes.parent.parent, [last], linked, source=self.source, seed=seed)
            assert last.output is not None
            seconds += share * (pace(last.output) - seconds)
            self._score(f"{variant.name}, finished exactly", seconds, last, updates, seed)

    def _score(self, name: str, seconds: float, step: Step, update: int, seed: int) -> None:
        """With the mean of the last checkpoints of a training until ``update``."""
        trained = step.makes.parent
        folder = self.where.out / f"{trained.parent.name}-at-{update}"
        first = update - (AVERAGED - 1) * self.args.every
        linked = partial(link_checkpoints, folder / "checkpoints", trained, first, update)
        steps = scored_steps(self.study, self.where, step, folder)
        self.comparison.run(folder, steps, linked, source=self.source, seed=seed)
        found = self.scored.setdefault((name, update), Scored(name, update))
        found.seconds.append(seconds)
        found.bits.append(validated_bits(folder / "valid.log"))
        found.lines.append(read_translations(folder / "test.txt", len(self.references)))

    def rows(self) -> list[dict[str, Any]]:
        """Of the record; models are beside the baseline after as many updates."""
        made = []
        for update in sorted({update for _, update in self.scored}):
            here = [each for each in self.scored.values() if each.updates == update]
            base = self.scored.get((self.study.baseline, update))
            made += [row(each, None if each is base else base, self.references) for each in here]
        return made


def lengths(only: str, updates: int, points: int) -> dict[str, int]:
    """The variants of ``--only``, and the updates of each: its own after an @, or ``--updates``.

    Raises:
        StudyError: other than a multiple of ``--points``, or more than ``--updates``.
    """
    found: dict[str, int] = {}
    for each in only.split(","):
        name, _, own = each.partition("@")
        if name in found or (own and not own.isdecimal()):
            raise StudyError(
                f"--only takes different variants, each alone or with its updates, NAME@N; got {only}"
            )
        found[name] = int(own or updates)
        if found[name] % points or not 0 < found[name] <= updates:
            raise StudyError(
                f"{f'--only {each}' if own else '--updates'} must be a multiple of --points, and at most "
                f"--updates; got {found[name]}, {points} and {updates}"
            )
    return found


def row(model: Scored, base: Scored | None, references: list[str]) -> dict[str, Any]:
    """Of the record."""
    beside, scores = against(model.lines, None if base is None else base.lines, references)
    return {
        "model": model.name, "updates": model.updates, "minutes": model.updates * fmean(model.seconds) / 60,
        "bits": spread(model.bits), **beside, "length": fmean(each.length for each in scores),
    }  # fmt: skip


def pace(log: Path) -> float:
    """Median seconds of an update, of the stretches that were logged.

    Raises:
        LogError: none was.
    """
    lines: Iterable[dict[str, Any]] = map(logged, log.read_text("utf-8", "replace").splitlines())
    speeds = [float(line["ups"]) for line in lines if float(line.get("ups", 0)) > 0]
    if not speeds:
        raise LogError(f"{log} has no line with the speed of updates")
    return 1 / median(speeds)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, score and draw; the record."""
    long = LongTraining(args)
    long.run()
    figure = draw(
        long.curves,
        "Perplexity of the validation set in long trainings",
        seconds="seconds of training, at the median speed of an update",
    )
    figure.savefig(args.out / "curves.png")
    study = long.study
    return long.comparison.record(
        about="Long trainings of the translation study",
        data=study.data,
        setup=f"variants of {from_root(args.study)}, at most {study.updates:,} updates; mean of the last "
        f"{AVERAGED} checkpoints, {args.every:,} updates apart; minutes: updates at their median speed; p: "
        "that chance makes so large a difference in BLEU to the softmax of the seed (paired bootstrap)",
        seeds=args.seeds,
        columns=COLUMNS,
        rows=long.rows(),
    )


def share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = -1.0
    if not 0 <= found < 1:
        raise argparse.ArgumentTypeError(f"takes a number from 0 to 1; got {text}")
    return found


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "long")
    add = parser.add_argument
    add(
        "--only",
        default="softmax,cascade,sampling",
        help="variants; NAME@N is trained for N updates in place of --updates (default: %(default)s)",
    )
    add("--seeds", default="1", help="default: %(default)s")
    add("--every", type=int, default=1000, help="updates between checkpoints (default: %(default)s)")
    add("--points", type=int, default=4000, help="updates between scores (default: %(default)s)")
    add("--exact", type=share, default=0.1, help="of a sampling head's updates (default: %(default)s)")
    return run_study("long_training.py", parser.parse_args(argv), compare, errors=(PlotError,))


if __name__ == "__main__":
    sys.exit(main())
