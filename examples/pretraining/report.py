#!/usr/bin/env python3
"""Print the result on the test set, from a recipe's log, in one line.

    python examples/pretraining/report.py --log evaluate.log --name NAME --data DATA-BIN

reads the log of fairseq-eval-lm, and checks that every token of the set was scored, or the log of
fairseq-validate.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

import numpy as np


class ReportError(Exception):
    """No result, or one that would be for something else than the test set."""


def sizes(index: Path) -> tuple[int, int]:
    """Lines of a binarised set, and its tokens with the ends of lines.

    The file has 9 bytes of magic, 8 of version, 1 of type, 8 of count, and 4 for each length.
    """
    data = index.read_bytes()
    count = int.from_bytes(data[18:26], "little")
    return count, int(np.frombuffer(data, dtype="<i4", count=count, offset=26).sum())


def language_model(log: str, expected: int) -> str | None:
    """The result of fairseq-eval-lm; None: the log is not its.

    Raises:
        ReportError: not every token was scored.
    """
    result = re.search(r"Loss \(base 2\): ([\d.]+), Perplexity: ([\d.]+)", log)
    scored = re.search(r"Evaluated ([\d,]+) tokens", log)
    if result is None or scored is None:
        return None
    found = int(scored[1].replace(",", ""))
    if found != expected:
        raise ReportError(
            f"the test set has {expected:,} tokens and {found:,} were scored; "
            "a perplexity would not be for all of it"
        )
    return f"perplexity {result[2]}, {result[1]} bits a token, {found:,} tokens"


def validated(log: str) -> str | None:
    """The result of fairseq-validate, masked language model or classifier; None: the log is not its."""
    for line in log.splitlines():
        if "'test' subset" not in line:
            continue
        said = {name: value for name, value in re.findall(r"\| (\w+) ([\d.]+)(?= \||$)", line)}
        if "ppl" in said:
            bits = said.get("nll_loss", said["loss"])
            return f"perplexity {said['ppl']} of masked tokens, {bits} bits each"
        if "accuracy" in said:
            return f"accuracy {said['accuracy']}%"
    return None


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--log", type=Path, required=True, help="what the command said")
    parser.add_argument("--name", required=True, help="what was run")
    parser.add_argument("--data", type=Path, required=True, help="the data-bin with test.idx")
    args = parser.parse_args(argv)
    try:
        log = args.log.read_text(encoding="utf-8")
        lines, tokens = sizes(args.data / "test.idx")
        said = language_model(log, tokens) or validated(log)
        if said is None:
            raise ReportError(f"{args.log} has no result; remove it to evaluate again")
    except (ReportError, OSError) as error:
        print(f"report.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.name}: test set of {lines:,} lines: {said}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
