#!/usr/bin/env python3
"""Check the output layers, and fairseq's commands with them, on a GPU in 13 minutes.

    make gpu-check                       # or: make gpu-check PYTHON=python3, where there is no .venv
    python scripts/gpu/check.py --parts a,c --seconds c=150
    python scripts/gpu/check.py --smoke  # the whole script on the CPU, tiny: does it run?

Parts: (a) values of every head against float64, (b) launches, operators and host waits of a step, (c) times
and peak memory, compared with other output layers, (d) fairseq-train, (e) beam search, (f) one rank of
many, (g) language models. It needs torch with CUDA and its triton. (d) to (g) run fairseq's commands, and
say so where fairseq is not installed. cut-cross-entropy and liger-kernel are timed where they are
installed. After each part, tables in markdown go to standard output and all results to a JSON file. The
exit status is 1 if a check failed; a missed target is reported, and is not a failure.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # fairseq takes seconds to import, and the heads do not need it; commands import it for themselves.
    sys.modules["fairseq"] = None  # type: ignore[assignment]
    os.environ.pop("MHE_KERNELS", None)
    # Triton reads it when it is imported.
    if "--smoke" in sys.argv:
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from scripts.common import faster_interpreter
from scripts.gpu import decoding, launches, pretraining, ranks, results, times, training, values
from scripts.gpu.forks import cores
from scripts.gpu.parts import Outcome, Part, Settings, run_part

#: In the order in which they run.
PARTS: dict[str, Part] = {
    part.letter: part
    for part in (
        values.PART,
        launches.PART,
        times.PART,
        training.PART,
        decoding.PART,
        ranks.PART,
        pretraining.PART,
    )
}

#: Seconds that compiling beforehand may take.
COMPILE_SECONDS = 40


class CheckError(Exception):
    """Bad input, said in one sentence."""


def check(parts: Sequence[Part], limits: dict[str, float], settings: Settings, path: Path) -> bool:
    """Run the parts; returns whether all checks were right."""
    found: dict[str, Any] = results.where(settings) | {"parts": {}}
    print(results.heading(found) + "\n", flush=True)
    if settings.device.type == "cuda":
        from scripts.gpu.precompile import precompile

        major, minor = torch.cuda.get_device_capability(settings.device)
        _say("compiling kernels")
        found["compiling"] = precompile(
            10 * major + minor, settings.jobs, COMPILE_SECONDS, [part.letter for part in parts]
        )
        _say(f"  {found['compiling']}")
        results.write(path, found)
    failed = 0
    for part in parts:
        limit = limits.get(part.letter, part.seconds)
        _say(f"({part.letter}) {part.title}, at most {limit:g} s")
        outcome = run_part(part, settings, limit, _say)
        found["commands"] = settings.workshop.way
        found["parts"][part.letter] = results.as_dict(outcome, part.title)
        results.write(path, found)
        for title, header, rows in outcome.tables:
            print(results.table(title, header, rows), flush=True)
        _conclude(part, outcome)
        failed += len(outcome.failed)
        if settings.device.type == "cuda":
            # Commands of the next part have the card for themselves.
            gc.collect()
            torch.cuda.empty_cache()
    print(f"all results are in {path}")
    return not failed


def _conclude(part: Part, outcome: Outcome) -> None:
    done, failed = len(outcome.checks), outcome.failed
    print(f"({part.letter}) {part.title}: {done} checks in {outcome.seconds:.0f} s, {len(failed)} failed.")
    for each in failed:
        print(f"- FAILED {each['name']}: {each.get('error') or each.get('wrong') or 'see the file'}")
    if outcome.missed:
        print(f"- no time for {len(outcome.missed)}: {'; '.join(outcome.missed)}")
    for line in outcome.absent:
        print(f"- not available: {line}")
    print(flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="default: %(default)s")
    limits = ",".join(f"{part.letter}={part.seconds:g}" for part in PARTS.values())
    parser.add_argument("--seconds", default="", help=f"time limits of parts (default: {limits})")
    parser.add_argument("--json", type=Path, default=Path("gpu-check.json"), help="default: %(default)s")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    parser.add_argument(
        "--jobs", type=int, default=cores(), help="processes that compile (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    try:
        parts = [PARTS[letter] for letter in _letters(args.parts)]
        limits_given = _limits(args.seconds)
        if args.jobs < 1:
            raise CheckError(f"--jobs must be at least 1, got {args.jobs}")
        if args.json.is_dir() or not args.json.absolute().parent.is_dir():
            raise CheckError(f"--json {args.json}: give a file in a folder that exists")
        if not args.smoke and not torch.cuda.is_available():
            raise CheckError(
                f"torch {torch.__version__} finds no CUDA GPU here; --smoke tries the script on the CPU"
            )
        if args.smoke:
            faster_interpreter.install()
        settings = Settings(torch.device("cpu" if args.smoke else "cuda"), args.smoke, args.jobs)
        with settings.workshop:
            return 0 if check(parts, limits_given, settings, args.json) else 1
    except CheckError as error:
        print(f"check.py: error: {error}", file=sys.stderr)
        return 1


def _letters(text: str) -> list[str]:
    letters = [word.strip() for word in text.split(",")]
    for letter in letters:
        if letter not in PARTS:
            known = ", ".join(f"{part.letter} ({part.title})" for part in PARTS.values())
            raise CheckError(f"--parts takes some of {known}, such as a,c; got {text!r}")
    return letters


def _limits(text: str) -> dict[str, float]:
    found = {}
    for word in filter(None, text.split(",")):
        letter, _, number = word.partition("=")
        try:
            found[letter.strip()] = float(number)
        except ValueError:
            found[letter.strip()] = -1.0
        if letter.strip() not in PARTS or not found[letter.strip()] > 0:
            raise CheckError(f"--seconds takes limits such as a=60,c=120; got {text!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
