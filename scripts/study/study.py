#!/usr/bin/env python3
"""Train a translation model with the softmax and with every head, and record BLEU, chrF2 and loss of each.

    python scripts/study/study.py --source examples/translation/data --out study

A file describes the study, ``examples/translation/study.toml``. All variants have the same data, batches,
number of updates and optimiser. Every run is a line of ``--out``/runs.jsonl: its commands, versions,
machine and scores, and a paired bootstrap of its translations against those of the baseline with the same
seed. The baseline with the study's first seed also translates the test set at every validation, so that its
BLEU after the same training time as a head's is known. ``scripts/study/study_times.py`` measures time and
memory afterwards, with the models taking turns, and ``scripts/study/study_report.py`` makes the report of
both.

Finished runs are skipped, and an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from mhe_fairseq.bench.machine import cpu_model  # noqa: E402
from mhe_fairseq.version import __version__  # noqa: E402
from scripts.common.checkpoints import mend_last_checkpoint  # noqa: E402
from scripts.common.commands import CommandError, Commands, Step, from_root  # noqa: E402
from scripts.common.curves import LogError, read_log  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402
from scripts.study.study_config import Study, StudyError, Variant, read_study  # noqa: E402
from scripts.study.translations import Scores, TranslationError, bootstrap, read_translations, score  # noqa: E402

USER_DIR = ["--user-dir", "mhe_fairseq"]


@dataclass(frozen=True)
class Run:
    """One training, scored.

    Attributes:
        variant: its name.
        seed: fairseq's.
        updates: made.
        commands: in order, from binarised data to translations.
        validation: [update, bits a token of the validation set].
        test: scores of the test set after the last update.
        earlier: [update, BLEU of the test set], the baseline's of the study's first seed only.
        against: probability that a difference in BLEU this large is chance (paired bootstrap against the
            baseline's run of the same seed), and that for chrF2; None for the baseline.
        versions: of what made it.
        machine: that made it.
    """

    variant: str
    seed: int
    updates: int
    commands: list[str]
    validation: list[tuple[int, float]]
    test: Scores
    earlier: list[tuple[int, float]]
    against: dict[str, float] | None
    versions: dict[str, str]
    machine: str


class Folders:
    """Where things lie under ``out``."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.text = out / "prepared"
        self.data = out / "data-bin"

    def codes(self, variant: Variant) -> Path:
        name = "".join(c if c.isalnum() else "-" for c in variant.assign.replace("--", "")).strip("-")
        return self.out / "codes" / name

    def run(self, variant: str, seed: int) -> Path:
        return self.out / f"{variant}-{seed}"


def prepare_steps(study: Study, source: Path, where: Folders, variants: list[Variant]) -> list[Step]:
    """From plain text to a binarised corpus and the codebooks of these variants."""
    src, tgt = study.languages
    words = ["python", "scripts/data/prepare_data.py", "--source", str(source), "--out", str(where.text)]
    words += ["--src", src, "--tgt", tgt, "--vocab-size", str(study.vocab_size)]
    steps = [Step("prepare", words, where.text / "pieces" / f"test.{tgt}")]
    words = ["fairseq-preprocess", "-s", src, "-t", tgt, "--joined-dictionary", "--workers", "2"]
    for split in ("train", "valid", "test"):
        words += [f"--{split}pref", str(where.text / "pieces" / split)]
    last = where.data / f"test.{src}-{tgt}.{tgt}.idx"
    steps.append(
        Step("preprocess", [*words, "--destdir", str(where.data)], last, where.out / "preprocess.log")
    )
    for variant in variants:
        if variant.assign:
            codes = where.codes(variant)
            words = [
                "mhe",
                "assign",
                "--data",
                str(where.data),
                *shlex.split(variant.assign),
                "-o",
                str(codes),
            ]
            step = Step(f"assign-{codes.name}", words, codes, codes.with_suffix(".log"))
            steps += [] if step in steps else [step]
    return steps


def train_step(study: Study, where: Folders, variant: Variant, seed: int, updates: int) -> Step:
    """fairseq-train of one run."""
    folder = where.run(variant.name, seed)
    src, tgt = study.languages
    own = [word.replace("{codes}", str(where.codes(variant))) for word in shlex.split(variant.train)]
    words = [
        "fairseq-train",
        str(where.data),
        *USER_DIR,
        "-s",
        src,
        "-t",
        tgt,
        *own,
        *shlex.split(study.train),
    ]
    # --required-batch-size-multiple 1: the default, 8, throws away the last sentences of every set.
    # --update-epoch-batch-itr True: without it a resumed run trains on other batches than one that was not.
    words += ["--required-batch-size-multiple", "1", "--update-epoch-batch-itr", "True", "--cpu"]
    words += ["--num-workers", "0", "--max-update", str(updates), "--seed", str(seed)]
    every = str(study.every)
    words += [
        "--validate-interval",
        "1000",
        "--validate-interval-updates",
        every,
        "--save-interval-updates",
        every,
    ]
    keep = "-1" if variant.name == study.baseline else "1"
    words += ["--keep-interval-updates", keep, "--no-epoch-checkpoints"]
    words += ["--log-format", "json", "--log-interval", str(min(50, study.every))]
    words += ["--save-dir", str(folder / "checkpoints")]
    return Step(
        "train", words, folder / "checkpoints" / "checkpoint_last.pt", folder / "train.log", append=True
    )


def generate_step(
    study: Study, where: Folders, folder: Path, checkpoint: Path, name: str, train: Step
) -> Step:
    """fairseq-generate of the test set, with the task the model was trained with."""
    task = train.words[train.words.index("--task") + 1]
    words = ["fairseq-generate", str(where.data), *USER_DIR, "--task", task, "--path", str(checkpoint)]
    words += [*shlex.split(study.generate), "--gen-subset", "test", "--remove-bpe", "sentencepiece", "--cpu"]
    words += ["--required-batch-size-multiple", "1", "--log-format", "none"]
    return Step(name, words, folder / f"{name}.txt", folder / f"{name}.txt")


def make_run(
    study: Study, where: Folders, variant: Variant, seed: int, updates: int, console: Console
) -> Run:
    """Train, translate and score.

    Raises:
        CommandError: a command failed, or the folder holds the run of other settings.
        LogError, TranslationError: what a command wrote is not whole.
    """
    folder = where.run(variant.name, seed)

    def say(line: str) -> None:
        console.print(f"{folder.name}: {line.strip()}", soft_wrap=True, highlight=False, markup=False)

    train = train_step(study, where, variant, seed, updates)
    # The number of updates may grow: that trains on.
    settings: dict[str, object] = {"train": train_step(study, where, variant, seed, 0).words}
    commands = Commands(folder, settings, say)
    commands.run(train, lambda: mend_last_checkpoint(folder / "checkpoints", say))
    last = folder / "checkpoints" / "checkpoint_last.pt"
    final = generate_step(study, where, folder, last, "test", train)
    commands.run(final)
    references = reference_lines(study, where)
    scores = score(read_translations(folder / "test.txt", len(references)), references)
    curve = read_log(folder / "train.log", variant.name).validation
    earlier = []
    if variant.name == study.baseline and seed == study.seeds[0]:
        # Steps are skipped only after steps that were: these come last, so that none repeats another.
        for path in sorted((folder / "checkpoints").glob("checkpoint_*_*.pt")):
            update = int(path.stem.rsplit("_", 1)[1])
            if update < updates:
                commands.run(generate_step(study, where, folder, path, f"test-{update}", train))
                lines = read_translations(folder / f"test-{update}.txt", len(references))
                earlier.append((update, score(lines, references).bleu))
    return Run(
        variant=variant.name,
        seed=seed,
        updates=updates,
        commands=[str(train), str(final)],
        validation=[(point.update, math.log2(point.perplexity)) for point in curve],
        test=scores,
        earlier=sorted(earlier),
        against=None,
        versions=versions(),
        machine=f"{cpu_model()}, {os.environ['OMP_NUM_THREADS']} of {os.cpu_count()} cores for a training",
    )


def reference_lines(study: Study, where: Folders) -> list[str]:
    path = where.text / "text" / f"test.{study.languages[1]}"
    return path.read_text(encoding="utf-8").removesuffix("\n").split("\n")


def compared(run: Run, study: Study, where: Folders) -> Run:
    """The run with a paired bootstrap against the baseline of its seed, where that was translated."""
    if run.variant == study.baseline:
        return run
    base = where.run(study.baseline, run.seed) / "test.txt"
    if not base.is_file():
        return run
    references = reference_lines(study, where)
    own = read_translations(where.run(run.variant, run.seed) / "test.txt", len(references))
    against = bootstrap(read_translations(base, len(references)), own, references)
    return Run(**{**vars(run), "against": against})


def versions() -> dict[str, str]:
    from importlib.metadata import version

    names = ("torch", "ve-fairseq", "sacrebleu", "sentencepiece")
    return {"mhe-fairseq": __version__} | {name: version(name) for name in names}


def study_runs(args: argparse.Namespace, console: Console) -> None:
    """Make every run that is asked for, and write ``runs.jsonl``.

    Raises:
        StudyError: bad input.
    """
    study = read_study(args.study)
    variants = study.chosen(args.only)
    seeds = study.seeds if args.seeds is None else parse_seeds(args.seeds)
    updates = study.updates if args.updates is None else args.updates
    for flag, value in (("updates", updates), ("jobs", args.jobs)):
        if value < 1:
            raise StudyError(f"--{flag} must be at least 1, got {value}")
    where = Folders(args.out)
    os.environ["OMP_NUM_THREADS"] = str(args.threads or max(1, (os.cpu_count() or 1) // args.jobs))

    def say(line: str) -> None:
        console.print(line.strip(), soft_wrap=True, highlight=False, markup=False)

    settings: dict[str, object] = {"source": str(args.source), "vocab_size": study.vocab_size}
    commands = Commands(args.out, settings | {"languages": list(study.languages)}, say)
    for step in prepare_steps(study, args.source, where, variants):
        commands.run(step)

    def one(what: tuple[Variant, int]) -> Run:
        run = make_run(study, where, *what, updates, console)
        shown = (
            f"BLEU {run.test.bleu:.2f}, chrF2 {run.test.chrf:.2f}, {run.validation[-1][1]:.3f} bits a token"
        )
        say(f"{run.variant}, seed {run.seed}: {shown}")
        return run

    def rank(key: tuple[str, int]) -> tuple[int, int]:
        order = list(study.variants)
        return key[1], order.index(key[0]) if key[0] in order else len(order)

    with ThreadPoolExecutor(args.jobs) as pool:
        runs = list(pool.map(one, [(variant, seed) for seed in seeds for variant in variants]))
    # All translations are there now, the baseline's too. Runs that were not asked for stay on record.
    path = args.out / "runs.jsonl"
    found = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    lines = {(each["variant"], each["seed"]): each for each in map(json.loads, found)}
    lines |= {(run.variant, run.seed): asdict(compared(run, study, where)) for run in runs}
    write_whole(path, [json.dumps(lines[key]).encode() + b"\n" for key in sorted(lines, key=rank)])
    say(f"{len(lines)} runs in {path}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """Raises:
    StudyError: not whole numbers, or one twice.
    """
    try:
        seeds = tuple(int(part) for part in text.split(","))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise StudyError(f"--seeds takes different whole numbers such as 1,2,3; got {text}")
    return seeds


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
    add("--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]")
    add("--out", type=Path, default=Path("study"), help="folder to write (default: %(default)s)")
    add("--only", help="variants, separated by commas (default: all)")
    add("--seeds", help="seeds, such as 1,2,3 (default: the study's)")
    add("--updates", type=int, help="updates of each training (default: the study's)")
    add("--jobs", type=int, default=1, help="trainings at once (default: %(default)s)")
    add("--threads", type=int, default=0, help="threads of a training (default: cores / --jobs)")
    args = parser.parse_args(argv)
    args.study, args.source = Path(os.path.abspath(args.study)), from_root(args.source)
    args.out = from_root(args.out)
    os.chdir(ROOT)
    # So that a command that is running ends with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        study_runs(args, Console() if sys.stdout.isatty() else Console(width=110))
    except (CommandError, LogError, StudyError, TranslationError, OSError) as error:
        print(f"study.py: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("study.py: interrupted; the same command continues where it was", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
