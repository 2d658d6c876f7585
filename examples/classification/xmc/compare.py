#!/usr/bin/env python3
"""Does the order of labels matter? Train the recipe's model with the dense layer, and with a cascade over
clusters of labels, their order of frequency and a random order; print a table of the test set.

    python examples/classification/xmc/compare.py --source DIR --out DIR --seeds 1,2,3

Each run is one of run.sh, in a folder of its own under --out: what is done is skipped by another run. With
--json the table is a record for docs/results.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

RUN = Path(__file__).resolve().parent / "run.sh"
sys.path.insert(0, str(RUN.parents[3]))

from scripts.common.seeds import spread  # noqa: E402

#: name -> arguments of run.sh.
VARIANTS = {
    "dense, one against all": ["--head", "softmax"],
    "cascade, clusters of labels": ["--head", "cascade", "--by", "cluster"],
    "cascade, order of frequency": ["--head", "cascade", "--by", "frequency"],
    "cascade, random order": ["--head", "cascade", "--by", "random"],
}
MEASURES = [f"{kind}@{k}" for kind in ("P", "nDCG", "PSP") for k in (1, 3, 5)]


class CompareError(Exception):
    """Something that cannot be compared, in one sentence."""


def run(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """Measures of the test set, after one run of the recipe; also "minutes" of the training.

    Raises:
        CompareError: it failed.
    """
    words = VARIANTS[name]
    folder = args.out / f"{'-'.join(word for word in words if not word.startswith('--'))}-{seed}"
    line = [str(RUN), "--source", str(args.source), "--out", str(folder), "--scale", args.scale, *words]
    line += ["--cpu"] if args.cpu else []
    line += ["--updates", str(args.updates)] if args.updates else []
    print(f"$ SEED={seed} {' '.join(line)}", flush=True)
    log = args.out / f"{folder.name}.log"
    with open(log, "w", encoding="utf-8") as file:
        done = subprocess.run(
            line, env={**os.environ, "SEED": str(seed)}, stdin=subprocess.DEVNULL, stdout=file, stderr=file
        )
    said = log.read_text(encoding="utf-8").rstrip().splitlines() or ["nothing"]
    if done.returncode:
        raise CompareError(f"a run failed, see {log}: {said[-1]}")
    found = {key: float(value) for key, value in re.findall(r"(\w+@\d) ([\d.]+)", said[-1])}
    if set(found) != set(MEASURES):
        raise CompareError(f"{log} does not end with the measures of a test set: {said[-1]}")
    seconds = (folder / "done" / "train").read_text(encoding="utf-8").splitlines()[1]
    return found | {"minutes": int(seconds) / 60}


def record(args: argparse.Namespace, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As docs/results has it."""
    keys = [*MEASURES, "minutes"]
    form = {key: "{:.2f}" if "@" in key else "{:.1f}" for key in keys}
    columns: list[dict[str, str]] = [{"key": "head", "title": "output layer"}]
    columns += [{"key": key, "title": key, "format": form[key]} for key in keys]
    return {
        "about": "Documents with labels: the dense layer, and a cascade over three orders of labels",
        "data": str(args.source.name),
        "setup": f"examples/classification/xmc, --scale {args.scale}; test set, percent; minutes of training",
        "commands": [f"python examples/classification/xmc/compare.py --source DIR --seeds {args.seeds}"],
        "seeds": args.seeds,
        "machine": args.machine or platform.machine(),
        "versions": {"torch": version("torch").partition("+")[0], "python": platform.python_version()},
        "columns": columns,
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path, required=True, help="documents with labels, as for run.sh")
    parser.add_argument("--out", type=Path, default=Path("runs/xmc-compare"), help="(default: %(default)s)")
    parser.add_argument("--seeds", default="1", metavar="S,...", help="(default: %(default)s)")
    parser.add_argument("--scale", choices=("full", "tiny"), default="full", help="(default: %(default)s)")
    parser.add_argument("--updates", type=int, help="of each training (default: the recipe's)")
    parser.add_argument("--cpu", action="store_true", help="use no GPU")
    parser.add_argument("--machine", help="in words, for the record")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write a record there")
    args = parser.parse_args(argv)
    try:
        if not re.fullmatch(r"\d+(,\d+)*", args.seeds):
            raise CompareError(f"--seeds are whole numbers such as 1,2,3; got {args.seeds}")
        if not args.source.is_dir():
            raise CompareError(f"there is no folder {args.source}")
        args.out.mkdir(parents=True, exist_ok=True)
        rows: list[dict[str, Any]] = []
        for name in VARIANTS:
            found = [run(args, name, int(seed)) for seed in args.seeds.split(",")]
            rows.append({"head": name} | {key: spread([each[key] for each in found]) for key in found[0]})
    except (CompareError, OSError) as error:
        print(f"compare.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{'':28}" + "".join(f"{key:>15}" for key in (*MEASURES, "minutes")))
    for row in rows:
        cells = [
            row[key] if isinstance(row[key], list) else [row[key], 0.0] for key in (*MEASURES, "minutes")
        ]
        print(f"{row['head']:28}" + "".join(f"{f'{a:.2f} +-{b:.2f}':>15}" for a, b in cells))
    if args.json is not None:
        args.json.write_text(json.dumps(record(args, rows), indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
