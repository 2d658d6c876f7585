#!/usr/bin/env python3
"""Write the tables of a page from the records beside it.

    python scripts/study/report_records.py                     # fills docs/results.md
    python scripts/study/report_records.py PAGE.md --check     # fails where the page would change

A record, ``docs/results/NAME.json``, has the rows of one table, and how they were made: commands, data,
machine, seeds. The text of the page between ``<!-- record: NAME -->`` and ``<!-- end -->`` is replaced.
Studies of translation have records of their own: ``study_report.py``.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from scripts.common.files import write_whole  # noqa: E402

BLOCK = re.compile(r"(<!-- record: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)

#: What a record has to say of its rows, beside them.
TOLD = {
    "about": str,
    "data": str,
    "setup": str,
    "commands": list,
    "seeds": str,
    "machine": str,
    "versions": dict,
    "columns": list,
    "rows": list,
}


class RecordError(Exception):
    """Bad input, said in one sentence."""


def read_record(path: Path) -> dict[str, Any]:
    """A record, checked.

    Raises:
        RecordError: missing, damaged, without one of ``TOLD``, or a row with a column that is not there.
    """
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in path.parent.glob("*.json")))
        raise RecordError(f"there is no record {path}; there are {known or 'none'}")
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordError(f"record {path} is not JSON ({error})") from None
    for name, kind in TOLD.items():
        if not isinstance(record.get(name), kind):
            raise RecordError(f"record {path} needs {name!r}, a {kind.__name__}; it has {record.get(name)!r}")
    keys = {column["key"] for column in record["columns"]}
    for number, row in enumerate(record["rows"], start=1):
        if set(row) != keys:
            wrong = ", ".join(sorted(keys ^ set(row)))
            raise RecordError(f"row {number} of record {path} and its columns differ in: {wrong}")
    return record


def cell(value: Any, form: str) -> str:
    """One value as the page shows it.

    Args:
        value: a number; [mean, half of the range] of several seeds; {updates: value}; text, taken as it is;
            or None, an empty cell.
        form: of numbers, for ``str.format``.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        mean, half = value
        return f"{form.format(mean)} +-{form.format(half)}"
    if isinstance(value, dict):
        return ", ".join(f"{key}: {cell(each, form)}" for key, each in value.items())
    return form.format(value)


def table(record: dict[str, Any]) -> list[str]:
    """Markdown: columns of numbers, which have a form, to the right, unless they say ``"left": true``."""
    columns = record["columns"]
    lines = [[column["title"] for column in columns]]
    lines.append(["---:" if "format" in each and not each.get("left") else "---" for each in columns])
    for row in record["rows"]:
        lines.append([cell(row[column["key"]], column.get("format", "{}")) for column in columns])
    return ["| " + " | ".join(line) + " |" for line in lines]


def filled(page: str, records: Path) -> str:
    """The page with every block made anew.

    Raises:
        RecordError: a bad record.
    """

    def block(match: re.Match[str]) -> str:
        made = table(read_record(records / f"{match[2]}.json"))
        return match[1] + "\n" + "\n".join(made) + "\n\n" + match[3]

    return BLOCK.sub(block, page)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    docs = ROOT / "docs"
    parser.add_argument(
        "page", type=Path, nargs="?", default=docs / "results.md", help="default: %(default)s"
    )
    parser.add_argument("--records", type=Path, default=docs / "results", help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page would change")
    args = parser.parse_args(argv)
    try:
        if not args.page.is_file():
            raise RecordError(f"there is no page {args.page}")
        old = args.page.read_text(encoding="utf-8")
        if not BLOCK.search(old):
            raise RecordError(f"{args.page} has no block <!-- record: NAME --> ... <!-- end --> to fill")
        new = filled(old, args.records)
        if args.check and new != old:
            raise RecordError(f"{args.page} is not what {args.records} gives; run this without --check")
        if new != old:
            write_whole(args.page, [new.encode()])
    except (RecordError, OSError) as error:
        print(f"report_records.py: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
