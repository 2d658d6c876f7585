#!/usr/bin/env python3
"""Measure time and memory of a study's models, in a training update and in beam search.

    python scripts/study/study_times.py --out study

Run it after ``study.py``, on an otherwise idle machine. By default it measures all variants that were
trained. The models of the study's first seed take turns: first updates, in processes that wait for each
other (``scripts/study/time_updates.py``), then translations of the test set. Seconds of a search are those
that ``fairseq-generate`` reports, without loading. ``--out``/times.jsonl gets a line for each variant.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.commands import ENVIRONMENT, from_root  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402
from scripts.study.study import Folders, generate_step, train_step  # noqa: E402
from scripts.study.study_config import Study, StudyError, Variant, read_study  # noqa: E402
from scripts.study.time_updates import TimingError, machine, measure  # noqa: E402


@dataclass(frozen=True)
class Times:
    """Of one variant.

    Attributes:
        variant: its name.
        update_seconds: of each timed training update.
        peak_bytes: of the training process, torch and data included.
        parameters, output_parameters: of the model, and of them those that only the output layer has.
        search_seconds: of each translation of the test set.
        sentences: in it.
        machine: that it was measured on.
    """

    variant: str
    update_seconds: list[float]
    peak_bytes: int
    parameters: int
    output_parameters: int
    search_seconds: list[float]
    sentences: int
    machine: str

    @property
    def update(self) -> float:
        return statistics.median(self.update_seconds)

    @property
    def search(self) -> float:
        return statistics.median(self.search_seconds)


def ratio(base: float, seconds: float) -> str:
    """How many times faster than a base. fairseq-generate has one digit: a few sentences take it 0.0 s."""
    return f"{base / seconds:.2f}x" if seconds else "no ratio"


def translate(study: Study, where: Folders, variant: Variant, seed: int) -> tuple[float, int]:
    """Seconds, and sentences.

    Raises:
        StudyError: it failed.
    """
    folder = where.run(variant.name, seed)
    train = train_step(study, where, variant, seed, study.updates)
    last = folder / "checkpoints" / "checkpoint_last.pt"
    step = generate_step(study, where, folder, last, "timed", train)
    # Waiting threads that sleep leave the core to another process. Here there is none, and waking them costs
    # more than the small products of a head: as in a user's shell, that is left to OpenMP.
    given = {key: value for key, value in ENVIRONMENT.items() if key != "OMP_WAIT_POLICY"}
    done = subprocess.run(step.words, env={**given, **os.environ}, capture_output=True, text=True)
    said = done.stdout + done.stderr
    found = re.search(r"Translated ([\d,]+) sentences .* in ([\d.]+)s", said)
    if done.returncode or found is None:
        lines = said.strip().splitlines()
        raise StudyError(f"{folder}: fairseq-generate failed: {lines[-1] if lines else 'no output'}")
    return float(found[2]), int(found[1].replace(",", ""))


def study_times(args: argparse.Namespace) -> None:
    """Measure, and write ``times.jsonl``.

    Raises:
        StudyError, TimingError: bad input, or a model that was not trained.
    """
    study = read_study(args.study)
    where, seed = Folders(args.out), study.seeds[0]
    last = {
        variant.name: where.run(variant.name, seed) / "checkpoints" / "checkpoint_last.pt"
        for variant in study.chosen(args.only)
    }
    if args.only is None:
        last = {name: path for name, path in last.items() if path.is_file()}
    if not last:
        raise StudyError(
            f"{args.out} has no checkpoint of seed {seed}; scripts/study/study.py trains the models"
        )
    names = list(last)
    for flag in ("rounds", "search_rounds"):
        if getattr(args, flag) < 1:
            raise StudyError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}")
    if args.threads:
        os.environ["OMP_NUM_THREADS"] = str(args.threads)
    costs = measure(list(last.values()), args.rounds, threads=args.threads)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    sentences = 0
    for _ in range(args.search_rounds):
        for name in names:
            spent, sentences = translate(study, where, study.variants[name], seed)
            seconds[name].append(spent)
    here = machine(args.threads)
    times = [
        Times(
            variant=name,
            update_seconds=cost.seconds,
            peak_bytes=cost.peak_bytes,
            parameters=cost.parameters,
            output_parameters=cost.output_parameters,
            search_seconds=seconds[name],
            sentences=sentences,
            machine=here,
        )
        for name, cost in zip(names, costs, strict=True)
    ]
    base = times[0]
    for each in times:
        print(
            f"{each.variant}: update {1000 * each.update:.0f} ms, {ratio(base.update, each.update)}; "
            f"peak memory {each.peak_bytes / 2**20:,.0f} MiB; {each.sentences} sentences in "
            f"{each.search:.1f} s, {ratio(base.search, each.search)}"
        )
    write_whole(args.out / "times.jsonl", [json.dumps(asdict(each)).encode() + b"\n" for each in times])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--study",
        type=Path,
        default=ROOT / "examples/translation/study.toml",
        help="the study (default: %(default)s)",
    )
    add("--out", type=Path, default=Path("study"), help="folder of the study (default: %(default)s)")
    add("--only", help="variants, separated by commas (default: all that were trained)")
    add("--rounds", type=int, default=6, help="turns of five updates each (default: %(default)s)")
    add("--search-rounds", type=int, default=3, help="turns of the search (default: %(default)s)")
    add("--threads", type=int, default=0, help="threads (default: torch's own choice)")
    args = parser.parse_args(argv)
    args.study, args.out = Path(os.path.abspath(args.study)), from_root(args.out)
    os.chdir(ROOT)
    try:
        study_times(args)
    except (StudyError, TimingError, OSError) as error:
        print(f"study_times.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
