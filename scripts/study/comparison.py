"""The frame of a study of a few trainings: its flags, its commands, its record."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from mhe_fairseq.bench.machine import cpu_model
from scripts.common.checkpoints import mend_last_checkpoint
from scripts.common.commands import ROOT, CommandError, Commands, Step, from_root
from scripts.common.curves import LogError
from scripts.common.files import write_whole
from scripts.study.study import versions
from scripts.study.study_config import Study, StudyError, read_study
from scripts.study.translations import TranslationError

#: Columns of a record, beside those of what the models differ in.
COLUMNS = [
    {"key": "updates", "title": "updates", "format": "{:,}"},
    {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
    {"key": "bleu", "title": "BLEU", "format": "{:.2f}"},
    {"key": "chrf", "title": "chrF2", "format": "{:.2f}"},
    {"key": "p", "title": "p", "format": "{:.3f}"},
]


class Comparison:
    """The commands of a study, run once each, and its record.

    Args:
        args: of ``make_parser``.
        name: that the record has for the folder ``--out``.
    """

    def __init__(self, args: argparse.Namespace, name: str) -> None:
        self.args, self.name = args, name
        self._said: list[str] = []

    def study(self) -> Study:
        """``--study``, with ``--updates``."""
        study = read_study(self.args.study)
        return replace(study, updates=self.args.updates or study.updates)

    def run(
        self,
        folder: Path,
        steps: list[Step],
        before: Callable[[], None] | None = None,
        **settings: object,
    ) -> None:
        """Run the steps of a folder. What is done is not done again.

        Args:
            folder: where they write.
            steps: in their order.
            before: called before a step is run.
            settings: what may not change between two runs in one folder.

        Raises:
            CommandError: one failed, or the folder is of another study.
        """
        commands = Commands(
            folder,
            {"source": str(self.args.source), **settings},
            lambda line: print(line.strip(), flush=True),
        )

        def prepare() -> None:
            mend_last_checkpoint(folder / "checkpoints", print)
            if before is not None:
                before()

        for each in steps:
            commands.run(each, prepare)
            self._said.append(str(each))

    def shown(self, text: str) -> str:
        """With names in place of this machine's folders."""
        return text.replace(str(self.args.source), "CORPUS").replace(str(self.args.out), self.name)

    def record(
        self, *, columns: list[dict[str, Any]], rows: list[dict[str, Any]], seeds: str, **about: str
    ) -> dict[str, Any]:
        """As scripts/study/report_records.py reads it; ``about``: its about, data and setup."""
        return {
            **about,
            "commands": [self.shown(command) for command in dict.fromkeys(self._said)],
            "seeds": seeds,
            "machine": f"{cpu_model()}, {os.environ['OMP_NUM_THREADS']} of {os.cpu_count()} cores",
            "versions": versions(),
            "columns": columns,
            "rows": rows,
        }


def make_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """The flags that such studies share; ``out``: the default of --out."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--study", type=Path, default=ROOT / "examples/translation/study.toml", help="default: %(default)s")
    add("--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]")
    add("--out", type=Path, default=Path(out), help="default: %(default)s")
    add("--updates", type=int, help="of the first training (default: the study's)")
    return parser


def run_study(
    program: str, args: argparse.Namespace, compare: Callable[[argparse.Namespace], dict[str, Any]]
) -> int:
    """Make a record and write it to ``--out``/record.json; the exit status."""
    args.study, args.source = Path(os.path.abspath(args.study)), from_root(args.source)
    args.out = from_root(args.out)
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        made = compare(args)
        write_whole(args.out / "record.json", [json.dumps(made, indent=2).encode() + b"\n"])
    except (CommandError, LogError, StudyError, TranslationError, OSError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out / 'record.json'}")
    return 0
