#!/usr/bin/env python3
"""Compile every kernel of the heads, for GPUs that need not be present, and report the results.

    python scripts/gpu/kernels_report.py --arch 80,90,100
    python scripts/gpu/kernels_report.py --quick           # one type, one shape a kernel, sm_90

Every head is built on the CPU, in several sizes and types, and its launches are recorded instead of run.
Each kernel is then compiled as a launch on the named GPU would compile it (one of those that differ only in
sizes). A line gives a kernel's registers, bytes of stack a thread (what did not fit into registers), shared
memory, and its instructions for tensor cores and for asynchronous copies. A kernel is named at the end, and
the exit status is 1, if it does not compile, spills, needs more shared memory than the GPU has, or
multiplies half-precision matrices without tensor cores.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

if __name__ == "__main__":
    # fairseq takes seconds to import, and the heads do not need it.
    sys.modules["fairseq"] = None  # type: ignore[assignment]
    # Kernels for the interpreter cannot be compiled.
    os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from mhe_fairseq.heads.kernels.dispatch import triton_version
from scripts.gpu.cases import DTYPES, KINDS, MAIN
from scripts.gpu.compiled import SHARED, Compiled, compile_for, faults, get_ready
from scripts.gpu.forks import cores, in_forks
from scripts.gpu.record import Signature, everything, representatives

#: V, d and N of the batches that are recorded. What changes from batch to batch must not matter, so that few
#: tokens tell as much as many. Of kernels that differ in sizes alone the last is compiled, a common one.
SIZES = (
    (32_768, 512, 63),
    (1_048_576, 512, 64),
    (50_021, 512, 64),
    (262_144, 1024, 64),
    (32_768, 512, 64),
    (262_144, 512, 64),
)
QUICK_SIZES = ((32_768, 512, 64),)

TYPES = (*DTYPES, "amp")


class ReportError(Exception):
    """Bad input, said in one sentence."""


def report(signatures: Sequence[Signature], archs: Sequence[int], jobs: int) -> list[str]:
    """Print a line a kernel and GPU; returns what is wrong, a line each."""
    pairs = [(each, arch) for each in signatures for arch in archs]
    wrong = []
    get_ready()
    for number, result in in_forks([partial(compile_for, *pair) for pair in pairs], jobs):
        signature, arch = pairs[number]
        kernel = f"{signature.head} {signature.name} {signature.dtype}, {signature.settings}, sm_{arch}"
        if isinstance(result, Compiled):
            print(f"{kernel}: {result}", flush=True)
            found = faults(result, arch)
        else:
            print(f"{kernel}: does not compile", flush=True)
            found = [f"does not compile: {result}"]
        wrong += [f"{kernel} ({signature.where}): {each}" for each in found]
    return wrong


def shipped(heads: Sequence[str], dtypes: Sequence[str], quick: bool) -> tuple[list[Signature], list[str]]:
    """The distinct kernels that the heads launch, and heads that launch none."""
    if not quick:
        found, idle = everything(heads, dtypes, SIZES, ("smoothing", "plain", "scoring", "search"))
        return representatives(found), idle
    main = [each for each in heads if each in MAIN] or heads
    found, idle = everything(main, dtypes, QUICK_SIZES, ("smoothing", "search"))
    # A kernel of another tile is another, and one with other parts, as a mixture's, which has products.
    first = {(each.name, each.settings, each.parts): each for each in reversed(found)}
    return [each for each in found if first[each.name, each.settings, each.parts] is each], idle


def conclude(wrong: Sequence[str], count: int, seconds: float) -> int:
    """Say how it went; returns the exit status."""
    for line in wrong:
        print(f"kernels_report.py: {line}", file=sys.stderr)
    kernels = f"{count} kernel{'' if count == 1 else 's'}"
    verdict = f"{len(wrong)} fault{'' if len(wrong) == 1 else 's'}" if wrong else "no fault"
    print(f"{kernels} compiled in {seconds:.0f} s, {verdict}")
    return 1 if wrong else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", help="compute capabilities (default: 80,90,100; with --quick 90)")
    parser.add_argument("--head", help=f"some of {', '.join(_with_kernels())} (default: all)")
    parser.add_argument("--dtype", help=f"some of {', '.join(TYPES)} (default: all; with --quick bf16)")
    parser.add_argument(
        "--quick", action="store_true", help="the main heads, one type, one shape a kernel, one GPU"
    )
    parser.add_argument("--jobs", type=int, default=cores(), help="processes (default: %(default)s)")
    args = parser.parse_args(argv)
    try:
        archs = _archs(args.arch or ("90" if args.quick else "80,90,100"))
        heads = _some("--head", args.head, _with_kernels())
        dtypes = _some("--dtype", args.dtype or ("bf16" if args.quick else None), TYPES)
        if args.jobs < 1:
            raise ReportError(f"--jobs must be at least 1, got {args.jobs}")
        if triton_version() is None:
            raise ReportError("triton is not installed; pip install triton brings its compiler")
    except ReportError as error:
        print(f"kernels_report.py: error: {error}", file=sys.stderr)
        return 1
    begin = time.monotonic()
    signatures, idle = shipped(heads, dtypes, args.quick)
    print(
        f"triton {triton_version()}; {len(signatures)} kernels recorded in {time.monotonic() - begin:.0f} s"
    )
    wrong = report(signatures, archs, args.jobs)
    wrong += [f"{head} launches no kernel" for head in idle]
    return conclude(wrong, len(signatures) * len(archs), time.monotonic() - begin)


def _with_kernels() -> tuple[str, ...]:
    return tuple(name for name, kind in KINDS.items() if kind.kernels)


def _archs(text: str) -> list[int]:
    found = []
    for word in text.split(","):
        if not word.strip().isdigit() or int(word) not in SHARED:
            known = ", ".join(map(str, SHARED))
            raise ReportError(f"--arch takes compute capabilities among {known}; got {word.strip()!r}")
        found.append(int(word))
    return found


def _some(flag: str, text: str | None, known: Sequence[str]) -> list[str]:
    if text is None:
        return list(known)
    found = [word.strip() for word in text.split(",")]
    for word in found:
        if word not in known:
            raise ReportError(f"{flag} takes some of {', '.join(known)}; got {word!r}")
    return found


if __name__ == "__main__":
    sys.exit(main())
