#!/usr/bin/env python3
"""Several trainings beside each other: a table, and a picture of accuracy over time.

    python examples/classification/compare.py softmax=runs/softmax cascade=runs/cascade --out accuracy.png
    python examples/classification/compare.py softmax=runs/softmax-1,runs/softmax-2 cascade=runs/cascade-1

Several folders of one name are seeds: a row is their mean and half of their range, the picture the first.
Reads log.jsonl and result.json of train.py, and verify.json of verify.py where there is one. With --clock
cpu_seconds or epoch the picture is over these: seconds do not compare where a machine does other work.
--record FILE writes columns and rows into a record, as docs/results has them; what else is in it stays.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent.parent)]

from mhe_fairseq.errors import MHEError  # noqa: E402
from scripts.common.seeds import spread  # noqa: E402
from scripts.study.plot_curves import COLOURS  # noqa: E402
from scripts.study.report_records import table  # noqa: E402

#: Key of a result -> title, form.
COLUMNS = {
    "parameters": ("parameters of the layer", "{:,}"),
    "test_1": ("accuracy at 1", "{:.2f}"),
    "test_5": ("at 5", "{:.2f}"),
    "tar_0.01": ("TAR at FAR 1e-2", "{:.2f}"),
    "tar_0.001": ("at 1e-3", "{:.2f}"),
    "rank_1": ("rank-1", "{:.2f}"),
}


#: Key of a line of the log -> title of the axis.
CLOCKS = {"seconds": "seconds of training", "cpu_seconds": "CPU seconds of training", "epoch": "epoch"}


def read(folder: Path) -> dict[str, Any]:
    """Results of a training, and ``log``, its lines.

    Raises:
        MHEError: it has none.
    """
    try:
        result: dict[str, Any] = json.loads((folder / "result.json").read_text())
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        raise MHEError(
            f"{folder} is not of a training that has ended ({error}); train.py writes it"
        ) from None
    verified = folder / "verify.json"
    return {**result, **(json.loads(verified.read_text()) if verified.is_file() else {}), "log": log}


def over_seeds(seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """A row: what all of the trainings have; the log is that of the first."""
    found: dict[str, Any] = {
        key: seeds[0][key] if key == "parameters" else spread([each[key] for each in seeds])
        for key in COLUMNS
        if all(key in each for each in seeds)
    }
    return {**found, "log": seeds[0]["log"]}


def columns_of(runs: dict[str, dict[str, Any]]) -> list[dict[str, str]]:
    """Those that any row has, as in a record."""
    keys = [key for key in COLUMNS if any(key in run for run in runs.values())]
    columns: list[dict[str, str]] = [{"key": "training", "title": "training"}]
    return columns + [{"key": key, "title": COLUMNS[key][0], "format": COLUMNS[key][1]} for key in keys]


def rows_of(runs: dict[str, dict[str, Any]], columns: list[dict[str, str]]) -> list[dict[str, Any]]:
    keys = [column["key"] for column in columns[1:]]
    return [{"training": name, **{key: run.get(key) for key in keys}} for name, run in runs.items()]


def write_record(path: Path, columns: list[dict[str, str]], rows: list[dict[str, Any]]) -> None:
    """Columns and rows; the rest of the file is kept.

    Raises:
        MHEError: it is there, and no record.
    """
    try:
        record = json.loads(path.read_text()) if path.is_file() else {}
        assert isinstance(record, dict)
    except (ValueError, AssertionError):
        raise MHEError(f"{path} is no record, a JSON object; nothing was written to it") from None
    path.write_text(json.dumps({**record, "columns": columns, "rows": rows}, indent=2) + "\n")


def draw(runs: dict[str, dict[str, Any]], clock: str, path: Path) -> None:
    """Validation accuracy at 1 over time.

    Raises:
        MHEError: no matplotlib, more trainings than colours, or nothing to draw.
    """
    # It tells of every font that it looks at where logs are verbose.
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MHEError(
            "matplotlib is not installed; install it with: pip install -c constraints.txt -e '.[plot]'"
        ) from None
    if len(runs) > len(COLOURS):
        raise MHEError(f"at most {len(COLOURS)} trainings can be told apart, got {len(runs)}")
    if not any("valid_1" in line for run in runs.values() for line in run["log"]):
        raise MHEError("there is nothing to draw: none of the trainings had valid images")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    panel = figure.subplots()
    for (name, run), colour in zip(runs.items(), COLOURS, strict=False):
        points = [(line[clock], line["valid_1"]) for line in run["log"] if "valid_1" in line]
        panel.plot(*zip(*points, strict=True), color=colour, label=name, marker="o", markersize=3)
    panel.set_xlabel(CLOCKS[clock])
    panel.set_ylabel("validation accuracy at 1, %")
    panel.grid(alpha=0.3)
    panel.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("runs", nargs="+", metavar="NAME=FOLDER[,FOLDER]", help="trainings of train.py, of several seeds")
    add("--out", type=Path, help="PNG to write (default: none)")
    add("--record", type=Path, help="JSON file to write columns and rows into (default: none)")
    add("--clock", choices=tuple(CLOCKS), default="seconds", help="default: %(default)s")
    args = parser.parse_args(argv)
    try:
        runs = {}
        for text in args.runs:
            name, is_named, folder = text.partition("=")
            if not is_named:
                raise MHEError(f"a training is NAME=FOLDER, such as softmax=runs/softmax; got {text!r}")
            runs[name] = over_seeds([read(Path(each)) for each in folder.split(",")])
        columns = columns_of(runs)
        rows = rows_of(runs, columns)
        print("\n".join(table({"columns": columns, "rows": rows})))
        if args.record:
            write_record(args.record, columns, rows)
        if args.out:
            draw(runs, args.clock, args.out)
            print(f"written: {args.out}")
    except (MHEError, OSError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
