#!/usr/bin/env python3
"""What a sampling head gains when the end of its training is done with the exact softmax.

    python scripts/study/exact_end.py --source CORPUS --out exact-end --seeds 1,2,3

Trains a study's softmax and its sampling head (``examples/translation/study.toml``), then the last updates of
the sampling head once more for each of ``--shares``, with `--mhe-exact-last`. These trainings share their
beginning: each starts from a checkpoint of the first, as a training that was interrupted there. Of each the
last checkpoints are averaged, validated and translated with.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import Step, from_root  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.study.averaged import AVERAGED, begun, exactly, link_checkpoints, scored_steps  # noqa: E402
from scripts.study.comparison import Comparison, make_parser, run_study  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    parse_seeds,
    prepare_steps,
    reference_lines,
    train_step,
)
from scripts.study.study_config import Study, StudyError, Variant  # noqa: E402
from scripts.study.trained_on import validated_bits, with_flags  # noqa: E402
from scripts.study.translations import BESIDE, against, read_translations, score  # noqa: E402

#: Checkpoints that a training saves.
SAVED = 40

COLUMNS = [
    {"key": "model", "title": "model"},
    {"key": "share", "title": "exact updates", "format": "{:.0%}"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    *BESIDE,
    {"key": "length", "title": "length, of the softmax's", "format": "{:.3f}"},
]


def training(study: Study, where: Folders, variant: Variant, seed: int) -> Step:
    """A training that is saved ``SAVED`` times, and not validated."""
    step = train_step(study, where, variant, seed, study.updates)
    words = with_flags(step.words, keep_interval_updates="-1", validate_interval=None)
    words = with_flags(words, validate_interval_updates=None)
    return replace(step, words=[*words, "--disable-validation"])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, average, score; the record."""
    comparison = Comparison(args, "exact-end")
    study = comparison.study()
    if study.updates % SAVED:
        raise StudyError(f"--updates must be a multiple of {SAVED}, got {study.updates}")
    study = replace(study, every=study.updates // SAVED)
    softmax, sampling = study.chosen(f"{study.baseline},{args.variant}")
    where, seeds = Folders(args.out), parse_seeds(args.seeds)
    source = str(args.source)
    comparison.run(where.out, prepare_steps(study, args.source, where, [softmax, sampling]), source=source)
    folders: dict[float | None, list[Path]] = {share: [] for share in (None, *sorted({0.0, *args.shares}))}
    first = study.updates - (AVERAGED - 1) * study.every
    for seed in seeds:
        whole = training(study, where, replace(sampling, train=f"{sampling.train} --mhe-exact-last 0"), seed)
        earlier = whole.makes.parent
        for share in folders:
            before, step = None, whole
            if share is None:
                step = training(study, where, softmax, seed)
            elif share:
                variant, end = exactly(sampling, f"{sampling.name}-{share}", share, study.updates)
                step = begun(training(study, where, variant, seed), earlier, end)
                before = partial(link_checkpoints, step.makes.parent, earlier, first, end)
            folder = step.makes.parent.parent
            steps = [step, *scored_steps(study, where, step, folder)]
            comparison.run(folder, steps, before, source=source, seed=seed)
            folders[share].append(folder)
    references = reference_lines(study, where)
    lines = {
        share: [read_translations(folder / "test.txt", len(references)) for folder in of]
        for share, of in folders.items()
    }
    rows, base = [], [score(each, references) for each in lines[None]]
    for share, own in lines.items():
        beside, scores = against(own, None if share is None else lines[None], references)
        rows.append(
            {
                "model": softmax.name if share is None else sampling.name,
                "share": share,
                "bits": spread([validated_bits(folder / "valid.log") for folder in folders[share]]),
                **beside,
                "length": fmean(each.length / of.length for each, of in zip(scores, base, strict=True)),
            }
        )
    return comparison.record(
        about="A sampling head whose last updates are those of the exact softmax",
        data=f"{' to '.join(study.languages)}; {study.vocab_size:,} pieces of sentencepiece, joined",
        setup=f"variants {softmax.name} and {sampling.name} of {from_root(args.study)}, {study.updates:,} "
        f"updates; mean of the last {AVERAGED} checkpoints, {study.every} updates apart; p: that chance "
        "makes so large a difference in BLEU to the softmax of the seed (paired bootstrap)",
        seeds=args.seeds,
        columns=COLUMNS,
        rows=rows,
    )


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
    add("--variant", default="sampling", help="with a sampling head (default: %(default)s)")
    add("--shares", type=shares, default=[0, 0.05, 0.1, 0.2], help="default: 0,0.05,0.1,0.2")
    add("--seeds", default="1", help="default: %(default)s")
    return run_study("exact_end.py", parser.parse_args(argv), compare)


if __name__ == "__main__":
    sys.exit(main())
