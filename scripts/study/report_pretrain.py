#!/usr/bin/env python3
"""Report the pretraining demo: a table, ``results.json`` and ``curves.png``.

    python scripts/study/report_pretrain.py --work pretrain-demo

reads the folder that ``scripts/recipes/pretrain_demo.py`` wrote.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import runpy
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.curves import Curve, LogError, read_log  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402
from scripts.study.plot_curves import PlotError, draw  # noqa: E402

#: The first is the reference.
HEADS = ("softmax", "cascade")

Results = dict[str, Any]


class ReportError(Exception):
    """Bad input, said in one sentence."""


def read(path: Path) -> str:
    if not path.is_file():
        raise ReportError(f"there is no {path}; scripts/recipes/pretrain_demo.py makes it")
    return path.read_text(encoding="utf-8", errors="replace")


def results(work: Path, curves: list[Curve]) -> Results:
    """Everything that was measured, with how.

    Raises:
        ReportError: something is missing, or the models were not scored on the same text.
    """
    settings = json.loads(read(work / "settings.json"))
    times = {
        Path(timed["checkpoint"]).parent.parent.name: timed
        for timed in (json.loads(line) for line in read(work / "times.log").splitlines() if line[:1] == "{")
    }
    made: Results = {}
    for curve in curves:
        name = curve.name
        said = re.search(
            r"Evaluated ([\d,]+) tokens.*?Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)",
            read(work / name / "test.log"),
            re.DOTALL,
        )
        if said is None or name not in times:
            raise ReportError(f"{work} has no score or no times of the {name}; remove it to start again")
        timed = times[name]
        last = curve.validation[-1]
        made[name] = {
            "updates": last.update,
            "valid_ppl": last.perplexity,
            "best_valid_ppl": curve.best.perplexity,
            "best_valid_ppl_at": curve.best.update,
            "test_ppl": float(said[3]),
            "test_tokens": int(said[1].replace(",", "")),
            "training_seconds": curve.training[-1].seconds,
            "update_seconds": timed["median"],
            "timed_seconds": timed["seconds"],
            "peak_bytes": timed["peak_bytes"],
            "parameters": timed["parameters"],
            "output_parameters": timed["output_parameters"],
        }
    if (
        len({row["test_tokens"] for row in made.values()}) > 1
        or len({row["updates"] for row in made.values()}) > 1
    ):
        raise ReportError(f"the models in {work} differ in updates or test tokens; remove it to start again")
    updates = curves[0].validation[-1].update
    flags = [word for key, value in settings.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    vocab = sum(1 for _ in read(work / "prepared" / "data-bin" / "dict.txt").splitlines()) + 4
    tokens = read(work / "prepared" / "tokens" / "train")
    return {
        "command": shlex.join(
            ["python", "scripts/recipes/pretrain_demo.py", "--updates", str(updates), *flags]
        ),
        **settings,
        "updates": updates,
        "vocabulary": vocab,
        "training_tokens": len(tokens.split()) + tokens.count("\n"),
        "machine": next(iter(times.values()))["machine"],
        "versions": {
            "python": platform.python_version(),
            # As text: importing the plugin imports all of fairseq, which takes seconds.
            "mhe_fairseq": runpy.run_path(str(ROOT / "mhe_fairseq" / "version.py"))["__version__"],
            **{name: version(name) for name in ("torch", "ve-fairseq", "matplotlib")},
        },
        "models": made,
    }


HEADER = (
    "perplexity of",
    "valid, last",
    "valid, best",
    "test",
    "time of an update",
    "peak memory",
    "parameters",
    "of the output layer",
)


def rows(found: Results) -> list[list[str]]:
    """The table, a row a model under its header."""
    models = found["models"]
    first = next(iter(models.values()))["update_seconds"]
    made = [list(HEADER)]
    for name, row in models.items():
        ratio = "" if name == HEADS[0] else f" ({first / row['update_seconds']:.2f}x)"
        made.append(
            [
                name,
                f"{row['valid_ppl']:,.1f}",
                f"{row['best_valid_ppl']:,.1f}",
                f"{row['test_ppl']:,.1f}",
                f"{row['update_seconds'] * 1000:,.0f} ms{ratio}",
                f"{row['peak_bytes'] / 2**20:,.0f} MiB",
                f"{row['parameters']:,}",
                f"{row['output_parameters']:,}",
            ]
        )
    return made


def title(found: Results) -> str:
    """The result in a sentence, whichever way it went."""
    reference, other = (found["models"][name] for name in HEADS)
    ratio = reference["update_seconds"] / other["update_seconds"]
    speed = f"{ratio:.1f}x faster than" if ratio >= 1 else f"{1 / ratio:.1f}x slower than"
    if 0.95 < ratio < 1.05:
        speed = "as fast as"
    return (
        f"Cascade: updates {speed} the softmax's, "
        f"test perplexity {other['test_ppl']:,.0f} against {reference['test_ppl']:,.0f}"
    )


def subtitle(found: Results) -> str:
    return (
        f"{found['updates']:,} updates of {found['tokens']:,} tokens, V = {found['vocabulary']:,} words, "
        f"{found['layers']} layers, d = {found['dim']}, {found['training_tokens']:,} tokens of "
        f"text, seed {found['seed']}\n{found['machine']}{warning(found)}"
    )


def warning(found: Results) -> str:
    """That the seconds of the trainings do not compare, where other work slowed one more than the other."""
    slowed = [
        row["training_seconds"] / row["updates"] / row["update_seconds"] for row in found["models"].values()
    ]
    if max(slowed) < 1.5 * min(slowed):
        return ""
    return "; other work slowed the trainings unequally: compare times of an update, not seconds of training"


def printed(found: Results) -> Table:
    """The table for a terminal."""
    header, *body = rows(found)
    made = Table(title=f"{title(found)}\n{subtitle(found)}", title_justify="left", caption_justify="left")
    made.caption = (
        "Test: of the checkpoint that was best in validation. Time: median, the models taking turns. Memory: "
        "of the training process, torch and data included. Of the output layer: parameters only it has."
    )
    for number, column in enumerate(header):
        made.add_column(column, justify="right" if number else "left")
    for row in body:
        made.add_row(*row)
    return made


def report(work: Path, console: Console) -> None:
    curves = [read_log(work / name / "train.log", name) for name in HEADS]
    found = results(work, curves)
    write_whole(work / "results.json", [json.dumps(found, indent=1).encode() + b"\n"])
    console.print(printed(found))
    figure = draw(curves, title(found), subtitle(found), rows(found))
    figure.savefig(work / "curves.png")
    console.print(f"curves: {work / 'curves.png'}; numbers: {work / 'results.json'}", highlight=False)
    console.print(f"more curves: tensorboard --logdir {work / 'tensorboard'}", highlight=False)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--work", type=Path, default=Path("pretrain-demo"), help="folder of the demo (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        # A pipe has no width of its own: wide enough for the table.
        report(args.work, Console() if sys.stdout.isatty() else Console(width=120))
    except (ReportError, LogError, PlotError, OSError) as error:
        print(f"report_pretrain.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
