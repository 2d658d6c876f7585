#!/usr/bin/env python3
"""Train a language model with the softmax and with each head, several seeds each, and print one table.

    python scripts/data/prepare_text.py --text book.txt --out text --pieces 65536
    python scripts/study/compare_language_models.py --data text/data-bin --out language-models

All trainings have the same data, batches, number of updates and optimiser. A seed decides weights, order of
batches, and dropout. Finished runs are skipped, and an interrupted run continues where it stopped. The time
of an update is measured at the end, with the models taking turns (``time_updates.py``), because the wall
time of the trainings depends on the machine's other work.

Every run is a line of ``--out``/results.jsonl: its commands, versions, machine, the perplexities of its
validations, and that of the test set as ``fairseq-eval-lm`` prints it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import statistics
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from mhe_fairseq.bench.machine import cpu_model  # noqa: E402
from mhe_fairseq.version import __version__  # noqa: E402
from scripts.common.checkpoints import mend_last_checkpoint  # noqa: E402
from scripts.common.commands import CommandError, Commands, Step  # noqa: E402
from scripts.common.curves import Curve, LogError, Point, read_log  # noqa: E402
from scripts.study.time_updates import Measured, TimingError, measure  # noqa: E402

#: fairseq's own softmax layer, and the baseline of every figure.
STOCK = "--arch transformer_lm --criterion cross_entropy"
OURS = "--arch mhe_transformer_lm --criterion mhe_cross_entropy"
#: name -> flags, and flags of `mhe assign` where the head wants a learned codebook.
HEADS: dict[str, tuple[str, str]] = {
    "softmax": (STOCK, ""),
    "product": (f"{OURS} --mhe-head product", "--by cluster"),
    "mixture": (f"{OURS} --mhe-head product --mhe-mixtures 8", "--by cluster"),
    "cascade": (f"{OURS} --mhe-head cascade", "--by cluster"),
    "sampling": (f"{OURS} --mhe-head sampling", ""),
    "cascade-prototypes": (f"{OURS} --mhe-head cascade --mhe-group-prototypes 4", "--by cluster"),
}
#: Trained where --heads says nothing.
DEFAULT = "softmax,product,mixture,cascade,sampling"
#: The body, four layers of 256, and its training. Not tied.
MODEL = (
    "--decoder-layers 4 --decoder-embed-dim 256 --decoder-input-dim 256 --decoder-output-dim 256 "
    "--decoder-ffn-embed-dim 1024 --decoder-attention-heads 4 --dropout 0.1"
)
TRAINING = (
    "--optimizer adam --adam-betas '(0.9, 0.98)' --clip-norm 1.0 "
    "--lr 0.002 --lr-scheduler inverse_sqrt --warmup-updates 100"
)
BATCHES = "--tokens-per-sample 128 --batch-size 8"
#: Every validation reads the same first 20 batches: a curve needs no more.
VALIDATION = "--max-valid-steps 20"


class CompareError(Exception):
    """Bad input, or a command that failed, said in one sentence."""


@dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        head: one of ``HEADS``.
        seed: fairseq's.
        commands: in order.
        updates: after which it was validated.
        valid_nats: of a token, there.
        test_nats: of a token of the whole test set, after the last update.
        versions: of what made it.
        machine: that made it.
    """

    head: str
    seed: int
    commands: list[str]
    updates: list[int]
    valid_nats: list[float]
    test_nats: float
    versions: dict[str, str]
    machine: str


def train_command(args: argparse.Namespace, head: str, seed: int, folder: Path) -> list[str]:
    flags, assign = HEADS[head]
    words = shlex.split(f"--task language_modeling {flags} {MODEL} {TRAINING} {BATCHES} {VALIDATION}")
    if assign:
        words += ["--mhe-codebook", str(codes(args.out, assign))]
    every = str(args.validate_every)
    words += ["--max-update", str(args.updates), "--validate-interval-updates", every, "--seed", str(seed)]
    words += ["--save-interval-updates", every, "--keep-interval-updates", "1", "--no-epoch-checkpoints"]
    words += ["--required-batch-size-multiple", "1", "--update-epoch-batch-itr", "True", "--num-workers", "0"]
    words += ["--log-format", "json", "--log-interval", "20", "--save-dir", str(folder / "checkpoints")]
    words += shlex.split(args.train_flags)
    return ["fairseq-train", str(args.data), "--user-dir", args.user_dir, *words]


def codes(out: Path, assign: str) -> Path:
    """Where the codebook made with these flags of `mhe assign` lies."""
    return out / ("codes" + re.sub(r"[^a-z0-9]+", "-", assign.replace("--by", "")).rstrip("-"))


def assign_command(args: argparse.Namespace, assign: str) -> list[str]:
    return ["mhe", "assign", "--data", str(args.data), *assign.split(), "-o", str(codes(args.out, assign))]


def eval_command(args: argparse.Namespace, folder: Path) -> list[str]:
    last = folder / "checkpoints" / "checkpoint_last.pt"
    flags = shlex.split(f"--gen-subset test {BATCHES} --num-workers 0 --required-batch-size-multiple 1")
    return ["fairseq-eval-lm", str(args.data), "--user-dir", args.user_dir, "--path", str(last), *flags]


def make_run(args: argparse.Namespace, head: str, seed: int, threads: int, console: Console) -> Run:
    """Train and score; what was done before with the same commands is not done again.

    Raises:
        CommandError: a command failed, or the folder holds the run of other settings.
        CompareError: the logs lack a number.
    """
    folder = args.out / f"{head}-{seed}"

    def say(line: str) -> None:
        console.print(f"{folder.name}: {line.strip()}", soft_wrap=True, highlight=False, markup=False)

    last = folder / "checkpoints" / "checkpoint_last.pt"
    train = Step("train", train_command(args, head, seed, folder), last, folder / "train.log", append=True)
    score = Step("test", eval_command(args, folder), folder / "eval.log", folder / "eval.log")
    commands = Commands(folder, {"train": train.words, "test": score.words}, say)
    commands.run(train, lambda: mend_last_checkpoint(folder / "checkpoints", say))
    commands.run(score)
    curve = {p.update: math.log(p.perplexity) for p in read_log(folder / "train.log", head).validation}
    said = (folder / "eval.log").read_text(encoding="utf-8", errors="replace")
    loss = re.search(r"Loss \(base 2\): ([0-9.]+)", said)
    if loss is None or args.updates not in curve:
        raise CompareError(f"{folder}: no perplexity of the test set or of update {args.updates} in its logs")
    lines = [shlex.join(step.words) for step in (train, score)]
    if HEADS[head][1]:
        lines.insert(0, shlex.join(assign_command(args, HEADS[head][1])))
    return Run(
        head=head,
        seed=seed,
        commands=lines,
        updates=list(curve),
        valid_nats=list(curve.values()),
        test_nats=float(loss.group(1)) * math.log(2),
        versions=versions(),
        machine=f"{cpu_model()}, {os.cpu_count()} cores, {threads} of them for a training",
    )


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {"mhe-fairseq": __version__} | {name: version(name) for name in ("torch", "ve-fairseq")}


def updates_to(run: Run, nats: float) -> float:
    """Updates after which the validation loss is as low as ``nats``; inf: it never is."""
    points = [
        Point(update, 0.0, math.exp(each)) for update, each in zip(run.updates, run.valid_nats, strict=True)
    ]
    # A loss of its own must be reached in spite of rounding.
    point = Curve(run.head, [], points).reaches(math.exp(nats) * (1 + 1e-9))
    return math.inf if point is None else point.update


def perplexity(runs: Iterable[Run]) -> tuple[float, float]:
    """Of the test set: exp of the mean loss over seeds, and the half of what the seeds' are apart."""
    nats = [run.test_nats for run in runs]
    each = [math.exp(value) for value in nats]
    return math.exp(statistics.fmean(nats)), (max(each) - min(each)) / 2


def table(runs: dict[str, list[Run]], measured: list[Measured], title: str) -> Table:
    """One row a head; ratios are to the first row's."""
    base = next(iter(runs))
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.caption = (
        f"Perplexity of the test set: mean over {len(runs[base])} seeds, half their range, difference from "
        f"{base}'s. Update: median time. To {base}'s: time of training until the validation loss is as "
        f"low as {base}'s lowest, as a ratio (mean over seeds). Peak memory: of the process."
    )
    for column in ("head", "perplexity", f"against {base}", "update", f"to {base}'s", "peak memory"):
        made.add_column(column, justify="left" if column == "head" else "right")
    against = perplexity(runs[base])[0]
    for (name, group), cost in zip(runs.items(), measured, strict=True):
        value, spread = perplexity(group)
        # A seed's own softmax is its measure: both saw the same batches.
        reached = []
        for run, other in zip(group, runs[base], strict=True):
            lowest = min(other.valid_nats)
            reached.append(updates_to(other, lowest) / updates_to(run, lowest))
        ratio = measured[0].median / cost.median
        speed = statistics.fmean(reached) * ratio
        made.add_row(
            name,
            f"{value:.1f} +-{spread:.1f}",
            f"{100 * (value / against - 1):+.1f}%",
            f"{cost.median * 1000:.0f} ms, {ratio:.2f}x",
            f"{speed:.2f}x" if min(reached) > 0 else "not reached",
            f"{cost.peak_bytes / 2**20:,.0f} MiB",
        )
    return made


def compare(args: argparse.Namespace, console: Console) -> None:
    """Train, score, time; print the table and write ``results.jsonl``."""
    names = args.heads.split(",")
    if set(names) - set(HEADS) or len(set(names)) < len(names):
        raise CompareError(f"--heads takes different ones of {','.join(HEADS)}; got {args.heads}")
    try:
        seeds = [int(seed) for seed in args.seeds.split(",")]
    except ValueError:
        raise CompareError(f"--seeds takes whole numbers such as 1,2,3; got {args.seeds}") from None
    for flag in ("updates", "jobs", "validate_every"):
        if getattr(args, flag) < 1:
            raise CompareError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(args, flag)}")
    if not (args.data / "dict.txt").is_file():
        raise CompareError(f"there is no dict.txt in --data {args.data}; prepare_text.py makes such a folder")
    threads = args.threads or max(1, (os.cpu_count() or 1) // args.jobs)
    os.environ["OMP_NUM_THREADS"] = str(threads)

    def say(line: str) -> None:
        console.print(line.strip(), soft_wrap=True, highlight=False, markup=False)

    shared = Commands(args.out, {"data": str(args.data)}, say)
    for assign in dict.fromkeys(HEADS[name][1] for name in names if HEADS[name][1]):
        path = codes(args.out, assign)
        shared.run(Step(path.name, assign_command(args, assign), path, path.with_suffix(".log")))

    def one(what: tuple[str, int]) -> Run:
        run = make_run(args, *what, threads, console)
        ppl = math.exp(run.test_nats)
        console.print(f"{run.head}, seed {run.seed}: test perplexity {ppl:.1f}", highlight=False)
        return run

    with ThreadPoolExecutor(args.jobs) as pool:
        done = list(pool.map(one, [(name, seed) for seed in seeds for name in names]))
    runs = {name: [run for run in done if run.head == name] for name in names}
    (args.out / "results.jsonl").write_text("".join(json.dumps(asdict(run)) + "\n" for run in done))
    console.print("timing: the models take turns", highlight=False)
    last = [args.out / f"{name}-{seeds[0]}" / "checkpoints" / "checkpoint_last.pt" for name in names]
    measured = measure(last, rounds=args.rounds, user_dir=args.user_dir)
    title = f"{args.updates} updates of {args.data}; {cpu_model()}, {os.cpu_count()} cores"
    console.print(table(runs, measured, title))
    times = {name: asdict(cost) for name, cost in zip(names, measured, strict=True)}
    (args.out / "times.json").write_text(json.dumps(times, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="binarised text, from prepare_text.py")
    parser.add_argument(
        "--out", type=Path, default=Path("language-models"), help="folder to write (default: %(default)s)"
    )
    parser.add_argument(
        "--heads", default=DEFAULT, help=f"of {', '.join(HEADS)}, to train (default: %(default)s)"
    )
    parser.add_argument("--seeds", default="1,2,3", help="seeds of each head (default: %(default)s)")
    parser.add_argument(
        "--updates", type=int, default=600, help="updates of each training (default: %(default)s)"
    )
    parser.add_argument(
        "--validate-every", type=int, default=100, help="updates between validations (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=6, help="turns of the timing (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=0, help="threads of a training (default: cores / --jobs)"
    )
    parser.add_argument(
        "--train-flags", default="", help="more flags of fairseq-train; they override the others"
    )
    parser.add_argument("--user-dir", default="mhe_fairseq", help="path of the plugin (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        # A pipe has no width of its own: wide enough for the table.
        compare(args, Console() if sys.stdout.isatty() else Console(width=120))
    except (CommandError, CompareError, LogError, TimingError, OSError) as error:
        print(f"compare_language_models.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
