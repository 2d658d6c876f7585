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
        corpora: and for folders of text; None: "CORPUS" for ``--source``.
    """

    def __init__(self, args: argparse.Namespace, name: str, corpora: dict[str, str] | None = None) -> None:
        self.args = args
        self._names = {**({str(args.source): "CORPUS"} if corpora is None else corpora), str(args.out): name}
        self._said: list[str] = []

    def study(self) -> Study:
        """``--study``, with ``--updates`` and, where there is such a flag, ``--vocab-size``."""
        study = read_study(self.args.study)
        vocab_size = getattr(self.args, "vocab_size", None) or study.vocab_size
        return replace(study, updates=self.args.updates or study.updates, vocab_size=vocab_size)

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
            settings,
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
        for folder, name in self._names.items():
            text = text.replace(folder, name)
        return text

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


def make_parser(
    description: str | None, out: str, has_source: bool = True, has_study: bool = True
) -> argparse.ArgumentParser:
    """The flags that such studies share.

    Args:
        description: of the script.
        out: the default of ``--out``.
        has_source: there is one corpus, ``--source``.
        has_study: a file has the trainings, ``--study``, and their number of updates.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    if has_study:
        default = ROOT / "examples/translation/study.toml"
        add("--study", type=Path, default=default, help="default: %(default)s")
        add("--updates", type=int, help="of a training from nothing (default: the study's)")
    if has_source:
        add("--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]")
    add("--out", type=Path, default=Path(out), help="default: %(default)s")
    return parser


def _source_from_root(args: argparse.Namespace) -> None:
    args.source = from_root(args.source)


def run_study(
    program: str,
    args: argparse.Namespace,
    compare: Callable[[argparse.Namespace], dict[str, Any]],
    corpora_from_root: Callable[[argparse.Namespace], None] = _source_from_root,
    errors: tuple[type[Exception], ...] = (),
) -> int:
    """Make a record and write it to ``--out``/record.json.

    Args:
        program: name of the script, for its errors.
        args: of ``make_parser``, written to.
        compare: makes the record; it runs in the root of the repository.
        corpora_from_root: has folders of text in ``args`` named from there.
        errors: further ones that are one sentence.

    Returns:
        The exit status.
    """
    told: tuple[type[Exception], ...] = (
        CommandError,
        LogError,
        StudyError,
        TranslationError,
        OSError,
        *errors,
    )
    try:
        args.out = from_root(args.out)
        if "study" in args:
            args.study = Path(os.path.abspath(args.study))
        corpora_from_root(args)
        os.chdir(ROOT)
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        made = compare(args)
        write_whole(args.out / "record.json", [json.dumps(made, indent=2).encode() + b"\n"])
    except told as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out / 'record.json'}")
    return 0
