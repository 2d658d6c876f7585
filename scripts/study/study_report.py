#!/usr/bin/env python3
"""Write a study's tables into a page, from its records.

    python scripts/study/study_report.py docs/results/translation --page docs/results.md
    python scripts/study/study_report.py study                        # prints the tables
    python scripts/study/study_report.py study --commands cascade     # prints the commands of its runs

The folder has ``runs.jsonl`` of ``study.py`` and ``times.jsonl`` of ``study_times.py``. The text of the
page between ``<!-- NAME: TABLE -->`` and ``<!-- end -->`` is replaced, where NAME is the folder's name and
TABLE one of scores, time, summary, commands. ``--plot FILE`` also draws the curves of some variants.
``--check`` writes nothing, and fails when the page is not what the records give.
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
import re
import statistics
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.curves import Curve, Point  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402

BLOCK = re.compile(r"(<!-- (\S+): (\w+)(?: of (\S+))? -->\n).*?(<!-- end -->)", re.DOTALL)


class ReportError(Exception):
    """Bad input, said in one sentence."""


@dataclass(frozen=True)
class Records:
    """What was recorded.

    Attributes:
        runs: variant -> its runs, seed after seed; the baseline, whose runs are compared with none, first.
        times: variant -> its times, where they were taken.
    """

    runs: dict[str, list[dict[str, Any]]]
    times: dict[str, dict[str, Any]]

    @property
    def baseline(self) -> str:
        return next(iter(self.runs))

    def update(self, variant: str) -> float:
        """Median seconds of an update."""
        return statistics.median(self.times[variant]["update_seconds"])

    def search(self, variant: str) -> float:
        """Median seconds of a search."""
        return statistics.median(self.times[variant]["search_seconds"])


def read_records(folder: Path) -> Records:
    """Raises:
    ReportError: a file is missing or damaged, or there are no runs of a baseline.
    """
    runs: dict[str, list[dict[str, Any]]] = {}
    for run in sorted(read_lines(folder / "runs.jsonl"), key=lambda each: each["against"] is not None):
        runs.setdefault(run["variant"], []).append(run)
    if not runs or next(iter(runs.values()))[0]["against"] is not None:
        raise ReportError(f"{folder / 'runs.jsonl'} has no run without a comparison, so it has no baseline")
    for each in runs.values():
        each.sort(key=lambda run: run["seed"])
    times = folder / "times.jsonl"
    found = read_lines(times) if times.is_file() else []
    return Records(runs, {each["variant"]: each for each in found})


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Raises:
    ReportError: missing, or a line that is no JSON object.
    """
    if not path.is_file():
        raise ReportError(f"there is no {path}; scripts/study/study.py writes one")
    made = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            made.append(json.loads(line))
        except ValueError:
            raise ReportError(f"line {number} of {path} is not JSON; was it cut short?") from None
    return made


# ---- tables


def scores(records: Records) -> list[str]:
    """BLEU, chrF2 and loss of every variant."""
    rows = [
        [
            "variant",
            "seeds",
            "BLEU",
            f"against {records.baseline}",
            "p",
            "chrF2",
            "length",
            "bits a token, validation",
        ]
    ]
    for name, runs in records.runs.items():
        bleu = [run["test"]["bleu"] for run in runs]
        # The least favourable seed tells: by one of several everything may look sure.
        chance = [run["against"]["BLEU"] for run in runs if run["against"] is not None]
        rows.append(
            [
                name,
                ", ".join(str(run["seed"]) for run in runs),
                spread(bleu),
                against(records, name),
                ", ".join(f"{each:.3f}" for each in chance),
                spread([run["test"]["chrf"] for run in runs]),
                f"{statistics.fmean(run['test']['length'] for run in runs):.3f}",
                spread([run["validation"][-1][1] for run in runs], 3),
            ]
        )
    return table(rows)


def time(records: Records) -> list[str]:
    """Cost of every variant that was timed, and the baseline's BLEU after as much time."""
    base = records.baseline
    rows = [
        [
            "variant",
            "update",
            "",
            "peak memory",
            "parameters",
            "output layer",
            "search",
            "",
            "BLEU",
            f"{base}'s after as long",
        ]
    ]
    for name, cost in records.times.items():
        if name not in records.runs or base not in records.times:
            continue
        runs = records.runs[name]
        seconds = records.update(name) * runs[0]["updates"]
        bleu = statistics.fmean(run["test"]["bleu"] for run in runs)
        # Of the runs that were translated on the way, the baseline's of the first seed.
        known = [run for run in records.runs[base] if run["earlier"]]
        others = [after(run, seconds / records.update(base)) for run in known]
        rows.append(
            [
                name,
                f"{1000 * records.update(name):.0f} ms",
                f"{records.update(base) / records.update(name):.2f}x",
                f"{cost['peak_bytes'] / 2**20:,.0f} MiB",
                f"{cost['parameters']:,}",
                f"{cost['output_parameters']:,}",
                f"{records.search(name):.1f} s",
                f"{records.search(base) / records.search(name):.2f}x",
                f"{bleu:.2f}",
                f"{statistics.fmean(others):.2f}" if others else "",
            ]
        )
    return table(rows)


def summary(records: Records) -> list[str]:
    """What a reader in a hurry wants of every variant that was timed."""
    base = records.baseline
    rows = [["variant", "seeds", "BLEU", f"against {base}", "update", "search", "peak memory"]]
    for name, cost in records.times.items():
        if name not in records.runs or base not in records.times:
            continue
        runs = records.runs[name]
        rows.append(
            [
                name,
                ", ".join(str(run["seed"]) for run in runs),
                spread([run["test"]["bleu"] for run in runs]),
                against(records, name),
                f"{records.update(base) / records.update(name):.2f}x",
                f"{records.search(base) / records.search(name):.2f}x",
                f"{cost['peak_bytes'] / 2**20:,.0f} MiB",
            ]
        )
    return table(rows)


def commands(records: Records) -> list[str]:
    """Every run with the commands that repeat it."""
    lines = []
    for name, runs in records.runs.items():
        for run in runs:
            test = run["test"]
            pinned = ", ".join(f"{key} {value}" for key, value in run["versions"].items())
            lines += [
                f"**{name}, seed {run['seed']}**, {run['updates']:,} updates: BLEU {test['bleu']:.2f}, chrF2 "
                f"{test['chrf']:.2f}. {pinned}; {run['machine']}.",
                "",
                "```sh",
                *run["commands"],
                "```",
                "",
            ]
    return lines[:-1]


def against(records: Records, name: str) -> str:
    """Mean difference in BLEU to the baseline's runs of the same seeds; nothing of the baseline itself."""
    base = {run["seed"]: run["test"]["bleu"] for run in records.runs[records.baseline]}
    runs = [run for run in records.runs[name] if run["seed"] in base]
    if name == records.baseline or not runs:
        return ""
    return f"{statistics.fmean(run['test']['bleu'] - base[run['seed']] for run in runs):+.2f}"


def after(run: dict[str, Any], update: float) -> float:
    """BLEU of a run after that many updates, on straight lines between the updates it was translated at."""
    points = [(0, 0.0), *map(tuple, run["earlier"]), (run["updates"], run["test"]["bleu"])]
    at = bisect.bisect_left([point[0] for point in points], update)
    if at == len(points):
        return float(points[-1][1])
    if at == 0:
        return float(points[0][1])
    (before, low), (beyond, high) = points[at - 1], points[at]
    return float(low + (update - before) / (beyond - before) * (high - low))


def spread(values: list[float], digits: int = 2) -> str:
    """The mean, and of several half of what they are apart."""
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +-{(max(values) - min(values)) / 2:.{digits}f}"


def table(rows: list[list[str]]) -> list[str]:
    """Markdown, numbers to the right."""
    head, *body = rows
    rule = ["---", *("---:" for _ in head[1:])]
    return ["| " + " | ".join(row) + " |" for row in (head, rule, *body)]


TABLES: dict[str, Callable[[Records], list[str]]] = {
    "scores": scores,
    "time": time,
    "summary": summary,
    "commands": commands,
}


# ---- page


def filled(page: str, name: str, records: Records) -> str:
    """The page with every block of this name made anew.

    Raises:
        ReportError: an unknown table, or variants that were not run.
    """

    def block(match: re.Match[str]) -> str:
        if match[2] != name:
            return match[0]
        if match[3] not in TABLES:
            raise ReportError(f"there is no table {match[3]}; there are {', '.join(TABLES)}")
        part = records if match[4] is None else chosen(records, match[4].split(","))
        return match[1] + "\n" + "\n".join(TABLES[match[3]](part)) + "\n\n" + match[5]

    return BLOCK.sub(block, page)


def chosen(records: Records, names: Iterable[str]) -> Records:
    """Only these variants, and the baseline first.

    Raises:
        ReportError: one that was not run.
    """
    wanted = list(dict.fromkeys([records.baseline, *names]))
    unknown = [name for name in wanted if name not in records.runs]
    if unknown:
        raise ReportError(f"{', '.join(unknown)} not among the recorded variants {', '.join(records.runs)}")
    times = {name: records.times[name] for name in wanted if name in records.times}
    return Records({name: records.runs[name] for name in wanted}, times)


def curves(records: Records) -> list[Curve]:
    """Validation of each variant's first seed, over updates and over seconds of undisturbed updates."""
    made = []
    for name, runs in records.runs.items():
        if name in records.times:
            pace = records.update(name)
            points = [Point(update, update * pace, 2**bits) for update, bits in runs[0]["validation"]]
            made.append(Curve(name, [], points))
    return made


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="of runs.jsonl and times.jsonl")
    parser.add_argument("--page", type=Path, help="markdown to fill (default: print scores and times)")
    parser.add_argument("--plot", type=Path, help="PNG to draw")
    parser.add_argument("--variants", help="that are drawn, separated by commas (default: all, up to seven)")
    parser.add_argument("--commands", metavar="VARIANTS", help="print the commands of these variants' runs")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page would change")
    args = parser.parse_args(argv)
    try:
        records = read_records(args.folder)
        if args.page is None:
            if args.plot:
                raise ReportError("--plot draws what a page shows: give it with --page")
            if args.check:
                raise ReportError("--check compares a page with the records: give it with --page")
            if args.commands:
                named = args.commands.split(",")
                found = chosen(records, named).runs
                print("\n".join(commands(Records({name: found[name] for name in named}, {}))))
                return 0
            print("\n".join([*scores(records), "", *(time(records) if records.times else [])]))
            return 0
        if args.commands:
            raise ReportError("--commands prints and fills no page: leave out one of --commands and --page")
        if not args.page.is_file():
            raise ReportError(f"there is no page {args.page}")
        old = args.page.read_text(encoding="utf-8")
        new = filled(old, args.folder.name, records)
        if args.check:
            if new != old:
                raise ReportError(f"{args.page} is not what {args.folder} gives; run this without --check")
            return 0
        if args.plot:
            from scripts.study.plot_curves import PlotError, draw

            part = chosen(records, args.variants.split(",")) if args.variants else records
            try:
                figure = draw(
                    curves(part),
                    f"{args.folder.name}: perplexity of the validation set",
                    seconds="seconds of training updates",
                )
            except PlotError as error:
                raise ReportError(str(error)) from None
            temporary = args.plot.with_suffix(".tmp.png")
            figure.savefig(temporary)
            os.replace(temporary, args.plot)
        if new != old:
            write_whole(args.page, [new.encode()])
    except (ReportError, OSError) as error:
        print(f"study_report.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
