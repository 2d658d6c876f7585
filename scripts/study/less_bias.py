#!/usr/bin/env python3
"""Whether a sampling head trains better with less bias in its estimate, at the cost of today's.

    python scripts/study/less_bias.py --source CORPUS --out less-bias

Trains a study's sampling head (``examples/translation/study.toml``) as it is, and

- with half of its groups for half of the updates, with its own number for a quarter and with twice as many
  for the last quarter, which is as many groups in all;
- with log Z_hat corrected to second order (scripts/study/second_order);
- with all groups in every update: the softmax that the others estimate, in a layer that has no such head.

Of each the last checkpoints are averaged, validated and translated with, and compared by a paired bootstrap
with the head as it is. Updates are timed with the models taking turns.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from mhe_fairseq.coding import Codebook  # noqa: E402
from mhe_fairseq.heads.sampling.head import default_groups  # noqa: E402
from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.study.averaged import AVERAGED, scored_rows, scored_steps  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.exact_end import often_saved, training  # noqa: E402
from scripts.study.study import Folders, parse_seeds, prepare_steps, reference_lines  # noqa: E402
from scripts.study.study_config import Study, Variant  # noqa: E402
from scripts.study.time_updates import TimingError, measure  # noqa: E402
from scripts.study.trained_on import value_of, with_flags  # noqa: E402
from scripts.study.translations import BESIDE  # noqa: E402

#: Of a sample that grows: groups, a multiple of the usual ones, and the share of the updates that has them.
STAGES = ((0.5, 0.5), (1.0, 0.25), (2.0, 0.25))

COLUMNS = [
    {"key": "way", "title": "training"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    *({**column, "title": column["title"].replace("the softmax", "the first")} for column in BESIDE),
    {"key": "length", "title": "length, of the first's", "format": "{:.3f}"},
    {"key": "update", "title": "seconds an update", "format": "{:.3f}"},
]


@dataclass(frozen=True)
class Way:
    """To train.

    Attributes:
        name: of its row.
        steps: that train it, one after the other, into one folder.
        timed: a checkpoint of each kind of its updates, a pattern of its name, and the share of the training
            that has them; none: it is not timed.
    """

    name: str
    steps: list[Step]
    timed: dict[Path, float]

    @property
    def folder(self) -> Path:
        """Its checkpoints are below."""
        return self.steps[-1].makes.parent.parent


def ways(study: Study, where: Folders, sampling: Variant, exact: Variant, seed: int) -> Iterator[Way]:
    """The first is the head as it is."""

    def way(name: str, variant: Variant, **flags: str) -> Way:
        step = training(study, where, variant, seed)
        step = replace(step, words=with_flags(step.words, **flags))
        return Way(name, [step], {step.makes: 1.0})

    yield way(f"{sampling.name}, as it is", sampling)
    yield growing(study, where, sampling, seed)
    corrected = replace(sampling, name=f"{sampling.name}-second-order")
    made = way("log Z corrected to second order", corrected, user_dir="scripts/study/second_order")
    yield replace(made, timed={})
    yield way(f"all groups in every update ({exact.name})", exact)


def growing(study: Study, where: Folders, sampling: Variant, seed: int) -> Way:
    """The groups of each of ``STAGES``: a training that is continued with other flags."""
    words = shlex.split(sampling.train)
    told = value_of(words, "--mhe-groups") if "--mhe-groups" in words else None
    usual = int(told or default_groups(Codebook.load(where.codes(sampling))) or 1)
    counts = [int(usual * groups) for groups, _ in STAGES]
    ends = accumulate(round(study.updates * share) for _, share in STAGES)
    steps, timed = [], {}
    for count, end, (_, share) in zip(counts, ends, STAGES, strict=True):
        flags = f"{sampling.train} --mhe-groups {count}"
        step = training(study, where, replace(sampling, name=f"{sampling.name}-growing", train=flags), seed)
        words = with_flags(step.words, max_update=str(end))
        last = end == study.updates
        steps.append(replace(step, words=words, name=step.name if last else f"{step.name}-{count}"))
        # The last one of a command has no number where an epoch ends with it.
        timed[step.makes.parent / f"*_{end - study.every}.pt"] = share
    *first, most = map(str, counts)
    return Way(f"{', '.join(first)} and {most} groups", steps, timed)


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, average, score, time; the record."""
    comparison = Comparison(args, "less-bias")
    study = often_saved(comparison.study())
    sampling, exact = study.chosen(f"{args.sampling},{args.exact}", "--sampling and --exact")
    where, source = Folders(args.out), str(args.source)
    comparison.run(where.out, prepare_steps(study, args.source, where, [sampling]), source=source)
    folders: dict[str, list[Path]] = {}
    timed: dict[str, dict[Path, float]] = {}
    for seed in parse_seeds(args.seeds):
        for each in ways(study, where, sampling, exact, seed):
            scoring = scored_steps(study, where, each.steps[-1], each.folder)
            comparison.run(each.folder, [*each.steps, *scoring], source=source, seed=seed)
            folders.setdefault(each.name, []).append(each.folder)
            timed.setdefault(each.name, each.timed)
    seconds = update_seconds(timed, args.rounds, args.turn)
    rows = scored_rows(folders, reference_lines(study, where))
    return comparison.record(
        about="A sampling head with less bias in its estimate, at equal cost",
        data=study.data,
        setup=f"variants {sampling.name} and {exact.name} of {from_root(args.study)}, {study.updates:,} "
        f"updates; mean of the last {AVERAGED} checkpoints, {study.every} updates apart; p: that chance "
        "makes so large a difference in BLEU to the first of the seed (paired bootstrap); updates timed "
        "with the models taking turns, those with several numbers of groups each for its share",
        seeds=args.seeds,
        columns=COLUMNS,
        rows=[
            {"way": name, **row, "update": seconds.get(name)} for name, row in zip(folders, rows, strict=True)
        ],
    )


def update_seconds(timed: dict[str, dict[Path, float]], rounds: int, turn: int) -> dict[str, float]:
    """Of a training's mean update, where checkpoints tell it.

    Raises:
        TimingError: a checkpoint is missing.
    """
    found = {}
    for pattern in (path for shares in timed.values() for path in shares):
        checkpoints = list(pattern.parent.glob(pattern.name))
        if not checkpoints:
            raise TimingError(f"there is no {pattern}")
        found[pattern] = checkpoints[0]
    measured = measure(list(found.values()), rounds, turn, int(os.environ["OMP_NUM_THREADS"]))
    medians = {pattern: each.median for pattern, each in zip(found, measured, strict=True)}
    return {
        name: round(sum(medians[path] * share for path, share in shares.items()), 4)
        for name, shares in timed.items()
        if shares
    }


def main(argv: list[str] | None = None) -> int:
    parser = make_parser(__doc__, "less-bias")
    add = parser.add_argument
    add("--vocab-size", type=int, help="pieces of the dictionary (default: the study's)")
    add("--sampling", default="sampling-predicted", help="variant (default: %(default)s)")
    add("--exact", default="softmax-linear", help="its softmax, a variant (default: %(default)s)")
    add("--seeds", default="1", help="default: %(default)s")
    add("--rounds", type=int, default=6, help="turns of each model that is timed (default: %(default)s)")
    add("--turn", type=int, default=5, help="updates in a turn (default: %(default)s)")
    return run_study("less_bias.py", parser.parse_args(argv), compare, errors=(TimingError,))


if __name__ == "__main__":
    sys.exit(main())
