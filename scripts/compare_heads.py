#!/usr/bin/env python3
"""Train the quickstart's model with the softmax and with each head, and print one table.

    make compare                                               # an hour on 2 cores
    python scripts/compare_heads.py --heads softmax,cascade --updates 350

Each head has a folder of ``scripts/quickstart.sh``, under ``compare/``: same corpus, same pieces, same
batches, same number of updates, same seed. What is done is not done again, and after an interruption it goes
on where it was. The times of an update are taken at the end, the models taking turns
(``scripts/time_updates.py``): the wall time of the trainings depends on what else the machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sacrebleu
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from scripts.time_updates import Measured, TimingError, measure  # noqa: E402

#: fairseq's own softmax layer, tied to the embeddings as --share-all-embeddings asks.
STOCK = "--arch transformer --criterion label_smoothed_cross_entropy --label-smoothing 0.1"
OURS = "--criterion mhe_cross_entropy --label-smoothing 0.1 --arch mhe_transformer"
#: name -> flags, and flags of `mhe assign` where the head wants a learned codebook.
HEADS: dict[str, tuple[str, str]] = {
    "softmax": (STOCK, ""),
    "product": (f"{OURS} --mhe-head product", "--by cluster"),
    "mixture": (f"{OURS} --mhe-head product --mhe-mixtures 8", ""),
    "cascade": (f"{OURS} --mhe-head cascade", "--by cluster"),
    "sampling": (f"{OURS} --mhe-head sampling", ""),
}


class CompareError(Exception):
    """Bad input, or a training that failed, said in one sentence."""


@dataclass(frozen=True)
class Result:
    """What came of one head.

    Attributes:
        name: the head's.
        bleu, brevity: of the test set, and its brevity penalty.
        signature: sacrebleu's.
        nll: validation nll after the last update, base 2, as fairseq logs it.
        best_nll: the lowest of all validations.
    """

    name: str
    bleu: float
    brevity: float
    signature: str
    nll: float
    best_nll: float


def train(name: str, folder: Path, updates: int, threads: int) -> None:
    """Run the quickstart for one head. Its output goes to ``folder``.log, but for a line here and there.

    Raises:
        CompareError: it failed.
    """
    flags, assign = HEADS[name]
    environment = os.environ | {
        "QUICKSTART_DIR": str(folder),
        "HEAD_FLAGS": flags,
        "ASSIGN_FLAGS": assign,
        "UPDATES": str(updates),
        "LOG_FORMAT": "json",
        "OMP_NUM_THREADS": str(threads),
    }
    log = folder.with_suffix(".log")
    with log.open("a", encoding="utf-8") as out:
        code = subprocess.run(
            [str(ROOT / "scripts" / "quickstart.sh")], env=environment, stdout=out, stderr=out, check=False
        ).returncode
    if code:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        raise CompareError(f"{name}: training or translation failed, see {log}: {lines[-1] if lines else ''}")


def validations(log: Path) -> list[dict[str, Any]]:
    """What fairseq logged of each validation, in order of updates; of two after as many, the later."""
    found: dict[int, dict[str, Any]] = {}
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        # A line is JSON where fairseq logs numbers, and free text elsewhere.
        if re.match(r'\{.*"valid_num_updates"', line):
            values = json.loads(line)
            found[int(values["valid_num_updates"])] = values
    return [found[key] for key in sorted(found)]


def result(name: str, folder: Path) -> Result:
    """Score a head's translations into TGT, the quickstart's variable.

    Raises:
        CompareError: translations or validations are missing.
    """
    target = os.environ.get("TGT", "de")
    hypotheses = (folder / f"hypotheses.{target}").read_text(encoding="utf-8").splitlines()
    references = (folder / "data" / "text" / f"test.{target}").read_text(encoding="utf-8").splitlines()
    if len(hypotheses) != len(references) or not hypotheses:
        raise CompareError(f"{name}: {len(references)} references and {len(hypotheses)} translations")
    metric = sacrebleu.BLEU()
    score = metric.corpus_score(hypotheses, [references])
    nll = [float(each["valid_nll_loss"]) for each in validations(folder / "train.log")]
    if not nll:
        raise CompareError(f"{name}: no validation in {folder / 'train.log'}")
    return Result(name, score.score, score.bp, str(metric.get_signature()), nll[-1], min(nll))


def table(results: list[Result], measured: list[Measured], title: str) -> Table:
    """One row a head; times are ratios to the first row's."""
    made = Table(title=title, title_justify="left", caption_justify="left")
    made.caption = (
        f"{results[0].signature}. BP: brevity penalty. nll: of the validation set, base 2, after the last "
        f"update (lowest of all validations). update: median time, {results[0].name}'s over this head's. "
        "Peak memory: of the training process, torch and data included."
    )
    for column in ("head", "BLEU", "BP", "nll", "parameters", "output layer", "update", "peak memory"):
        made.add_column(column, justify="left" if column == "head" else "right")
    for row, cost in zip(results, measured, strict=True):
        made.add_row(
            row.name,
            f"{row.bleu:.2f}",
            f"{row.brevity:.3f}",
            f"{row.nll:.2f} ({row.best_nll:.2f})",
            f"{cost.parameters:,}",
            f"{cost.output_parameters:,}",
            f"{cost.median * 1000:.0f} ms, {measured[0].median / cost.median:.2f}x",
            f"{cost.peak_bytes / 2**20:,.0f} MiB",
        )
    return made


def compare(args: argparse.Namespace, console: Console) -> None:
    """Train, score, time; print the table and write ``results.json``."""
    names = args.heads.split(",")
    unknown = [name for name in names if name not in HEADS]
    if unknown or len(set(names)) < len(names):
        raise CompareError(f"--heads takes different ones of {','.join(HEADS)}; got {args.heads}")
    for flag in ("updates", "jobs"):
        if getattr(args, flag) < 1:
            raise CompareError(f"--{flag} must be at least 1, got {getattr(args, flag)}")
    args.out.mkdir(parents=True, exist_ok=True)
    folders = {name: args.out / name for name in names}
    threads = max(1, (os.cpu_count() or 1) // args.jobs)

    def one(name: str) -> None:
        console.print(f"{name}: training, see {folders[name].with_suffix('.log')}", highlight=False)
        train(name, folders[name], args.updates, threads)
        found = result(name, folders[name])
        console.print(f"{name}: BLEU {found.bleu:.2f}, nll {found.nll:.2f}", highlight=False)

    with ThreadPoolExecutor(args.jobs) as pool:
        # `list` raises what a training raised.
        list(pool.map(one, names))
    results = [result(name, folders[name]) for name in names]
    console.print("timing: the models take turns", highlight=False)
    measured = measure([folders[name] / "checkpoints" / "checkpoint_last.pt" for name in names])
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    title = f"{args.updates} updates of the quickstart's model, seed 1; {machine}"
    console.print(table(results, measured, title))
    rows = [
        vars(row)
        | {"seconds": cost.seconds, "peak_bytes": cost.peak_bytes, "parameters": cost.parameters}
        | {"output_parameters": cost.output_parameters}
        for row, cost in zip(results, measured, strict=True)
    ]
    target = args.out / "results.json"
    target.write_text(json.dumps({"title": title, "heads": rows}, indent=1) + "\n", encoding="utf-8")
    console.print(f"the same in {target}", highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", default=",".join(HEADS), help="default: %(default)s")
    parser.add_argument("--updates", type=int, default=700, help="of each training (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("compare"), help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        # A pipe has no width of its own: wide enough for the table.
        compare(args, Console() if sys.stdout.isatty() else Console(width=120))
    except (CompareError, TimingError, OSError) as error:
        print(f"compare_heads.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
