#!/usr/bin/env python3
"""Give a trained translation model a larger dictionary, train it on for a little, and compare it with one
trained from nothing for as long.

    python scripts/study/grow_dictionary.py --source CORPUS --out larger-dictionary

The model is a variant of a study (``examples/translation/study.toml``). It is trained with a small
dictionary; `mhe convert` gives it a larger one; the command that this prints trains it on, a tenth of the
updates. As many updates from nothing are made over the same data, twice: with the study's schedule, and with
that of the printed command at the study's learning rate. All are validated and translated alike.

``--out``/record.json has what is shown on the page of results. What is done is not done again.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from mhe_fairseq.bench.machine import cpu_model  # noqa: E402
from scripts.common.checkpoints import mend_last_checkpoint  # noqa: E402
from scripts.common.commands import CommandError, Commands, Step, from_root  # noqa: E402
from scripts.common.curves import LogError, read_log  # noqa: E402
from scripts.common.files import write_whole  # noqa: E402
from scripts.study.study import (  # noqa: E402
    Folders,
    generate_step,
    prepare_steps,
    reference_lines,
    train_step,
    versions,
)
from scripts.study.study_config import Study, StudyError, Variant, read_study  # noqa: E402
from scripts.study.translations import TranslationError, bootstrap, read_translations, score  # noqa: E402

#: Flags of every training beside those that the study or the printed command has.
_COMMON = (
    "--cpu --num-workers 0 --update-epoch-batch-itr True --log-format json --log-interval {interval} "
    "--no-epoch-checkpoints --validate-interval 1000"
)


class Trained:
    """A training of the comparison.

    Attributes:
        name: of its row.
        step: its command.
        where: its data.
    """

    def __init__(self, name: str, step: Step, study: Study, where: Folders) -> None:
        self.name, self.step, self.study, self.where = name, step, study, where

    @property
    def folder(self) -> Path:
        return self.step.makes.parent.parent

    def generate(self) -> Step:
        return generate_step(self.study, self.where, self.folder, self.step.makes, "test", self.step)

    def bits(self) -> float:
        """Of a token of the validation set, after the last update."""
        assert self.step.output is not None
        return math.log2(read_log(self.step.output, self.name).validation[-1].perplexity)

    def translations(self, count: int) -> list[str]:
        return read_translations(self.folder / "test.txt", count)


def printed_line(log: Path) -> list[str]:
    """The command that `mhe convert` recommends, its last line.

    Raises:
        StudyError: there is none.
    """
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.strip()]
    words = shlex.split(lines[-1]) if lines else []
    if words[:1] != ["fairseq-train"]:
        raise StudyError(f"{log} does not end with a fairseq-train command")
    return words


def with_flags(words: list[str], **values: str | None) -> list[str]:
    """A command with the values of some of its flags replaced; None: without the flag."""
    made = list(words)
    for name, value in values.items():
        flag = "--" + name.replace("_", "-")
        place = made.index(flag)
        made[place : place + 2] = [] if value is None else [flag, value]
    return made


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def convert_step(small: Step, data: Path, folder: Path) -> Step:
    output = folder / "grown.pt"
    words = ["mhe", "convert", str(small.makes), "--data", str(data), "-o", str(output), "--force"]
    return Step("convert", words, output, folder / "convert.log")


def trainings(
    args: argparse.Namespace, study: Study, variant: Variant, large: tuple[Study, Folders], log: Path
) -> list[Trained]:
    """The grown model trained on, and the two from nothing."""
    line, seed = printed_line(log), str(args.seed)
    updates, where = int(value_of(line, "--max-update")), large[1]
    out = args.out
    common = shlex.split(_COMMON.format(interval=min(10, updates))) + [
        "--seed",
        seed,
        "--validate-interval-updates",
        str(updates),
    ]
    common += ["--save-interval-updates", str(updates), "--keep-interval-updates", "1"]
    if "--seed" in line:
        line = with_flags(line, seed=None)

    def step(folder: Path, words: list[str]) -> Step:
        words = [*with_flags(words, save_dir=str(folder / "checkpoints")), *common]
        return Step(
            "train", words, folder / "checkpoints" / "checkpoint_last.pt", folder / "train.log", append=True
        )

    rate = value_of(shlex.split(study.train), "--lr")
    fresh = with_flags(
        line,
        finetune_from_model=None,
        lr=rate,
        mhe_codebook=str(where.codes(variant)),
    )
    own = train_step(replace(large[0], every=updates), where, variant, args.seed, updates)
    return [
        Trained("grown, trained on", step(out / f"grown-{seed}", line), *large),
        Trained("from nothing, its schedule", step(out / f"nothing-{seed}", fresh), *large),
        Trained("from nothing, the study's schedule", own, *large),
    ]


def validation_step(name: str, data: Path, checkpoint: Path, folder: Path) -> Step:
    words = ["fairseq-validate", str(data), "--user-dir", "mhe_fairseq", "--task", "mhe_translation"]
    words += ["--path", str(checkpoint), "--max-tokens", "1024", "--required-batch-size-multiple", "1"]
    words += ["--cpu", "--num-workers", "0", "--log-format", "json"]
    return Step(name, words, folder / f"{name}.log", folder / f"{name}.log")


def validated_bits(log: Path) -> float:
    """Of fairseq-validate.

    Raises:
        StudyError: it says none.
    """
    found = re.findall(r'"valid_nll_loss": "?([0-9.]+)', log.read_text(encoding="utf-8"))
    if not found:
        raise StudyError(f"{log} has no loss of a validation")
    return float(found[-1])


def compare(args: argparse.Namespace) -> dict[str, Any]:
    """Train, convert, train on, score; the record."""
    study = read_study(args.study)
    study = replace(study, updates=args.updates or study.updates)
    (variant,) = study.chosen(args.variant)
    if not variant.assign:
        raise StudyError(f"--variant {args.variant} has no learned codebook; take one such as cascade")
    sizes = [replace(study, vocab_size=size) for size in (args.small, args.large)]
    places = [Folders(args.out / str(size)) for size in (args.small, args.large)]
    said: list[str] = []

    def run(folder: Path, steps: list[Step]) -> None:
        commands = Commands(
            folder,
            {"seed": args.seed, "source": str(args.source)},
            lambda line: print(line.strip(), flush=True),
        )
        for each in steps:
            commands.run(each, lambda: mend_last_checkpoint(folder / "checkpoints", print))
            said.append(str(each))

    for size, where in zip(sizes, places, strict=True):
        run(where.out, prepare_steps(size, args.source, where, [variant]))
    small = Trained(
        "small", train_step(sizes[0], places[0], variant, args.seed, study.updates), sizes[0], places[0]
    )
    run(small.folder, [small.step, small.generate()])
    folder = args.out / f"converted-{args.seed}"
    grown = convert_step(small.step, places[1].data, folder)
    before = generate_step(sizes[1], places[1], folder, grown.makes, "test", small.step)
    run(folder, [grown, validation_step("valid", places[1].data, grown.makes, folder), before])
    large = trainings(args, study, variant, (sizes[1], places[1]), folder / "convert.log")
    for each in large:
        run(each.folder, [each.step, each.generate()])

    references = reference_lines(sizes[1], places[1])
    lines = {each.name: each.translations(len(references)) for each in [small, *large]}
    lines["grown"] = read_translations(folder / "test.txt", len(references))
    updates = int(value_of(large[0].step.words, "--max-update"))
    ours = large[0].name
    rows = [row("trained", args.small, study.updates, small.bits(), lines["small"], references)]
    rows.append(row("grown", args.large, 0, validated_bits(folder / "valid.log"), lines["grown"], references))
    for each in large:
        rows.append(row(each.name, args.large, updates, each.bits(), lines[each.name], references))
        if each.name != ours:
            rows[-1]["p"] = bootstrap(lines[ours], lines[each.name], references)["BLEU"]
    return record(args, study, rows, said, folder / "convert.log")


def row(
    model: str, vocab: int, updates: int, bits: float, lines: list[str], references: list[str]
) -> dict[str, Any]:
    scores = score(lines, references)
    return {
        "model": model, "vocab": vocab, "updates": updates, "bits": round(bits, 3),
        "bleu": round(scores.bleu, 2), "chrf": round(scores.chrf, 2), "p": None,
    }  # fmt: skip


def record(
    args: argparse.Namespace, study: Study, rows: list[dict[str, Any]], commands: list[str], log: Path
) -> dict[str, Any]:
    """As scripts/study/report_records.py reads it."""

    def shown(text: str) -> str:
        """With names in place of this machine's folders."""
        return text.replace(str(args.source), "CORPUS").replace(str(args.out), "larger-dictionary")

    said = log.read_text(encoding="utf-8").splitlines()
    counts = [shown(line.strip()) for line in said if "symbols, now" in line]
    return {
        "about": f"A {args.variant} with a dictionary of {args.small:,} pieces given one of {args.large:,}",
        "data": f"{' to '.join(study.languages)}; pieces of sentencepiece, joined; {' '.join(counts)}",
        "setup": f"variant {args.variant} of {from_root(args.study)}; bits are of a piece, so those "
        "of the two dictionaries do not compare; p: that chance makes so large a difference in BLEU to the "
        "grown model (paired bootstrap)",
        "commands": [shown(command) for command in commands],
        "seeds": str(args.seed),
        "machine": f"{cpu_model()}, {os.environ['OMP_NUM_THREADS']} of {os.cpu_count()} cores",
        "versions": versions(),
        "columns": [
            {"key": "model", "title": "model"},
            {"key": "vocab", "title": "pieces", "format": "{:,}"},
            {"key": "updates", "title": "updates", "format": "{:,}"},
            {"key": "bits", "title": "bits a piece, validation", "format": "{:.3f}"},
            {"key": "bleu", "title": "BLEU", "format": "{:.2f}"},
            {"key": "chrf", "title": "chrF2", "format": "{:.2f}"},
            {"key": "p", "title": "p", "format": "{:.3f}"},
        ],
        "rows": rows,
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--study", type=Path, default=ROOT / "examples/translation/study.toml", help="default: %(default)s")
    add("--source", type=Path, required=True, help="folder of {train,valid,test}.{src,tgt}[.xz]")
    add("--out", type=Path, default=Path("larger-dictionary"), help="default: %(default)s")
    add("--variant", default="cascade", help="of the study, with a learned codebook (default: %(default)s)")
    add("--small", type=int, default=8000, help="pieces of the first dictionary (default: %(default)s)")
    add("--large", type=int, default=12000, help="pieces of the second one (default: %(default)s)")
    add("--updates", type=int, help="of the first training (default: the study's)")
    add("--seed", type=int, default=1, help="default: %(default)s")
    args = parser.parse_args(argv)
    args.study, args.source = Path(os.path.abspath(args.study)), from_root(args.source)
    args.out = from_root(args.out)
    os.chdir(ROOT)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        made = compare(args)
        write_whole(args.out / "record.json", [json.dumps(made, indent=2).encode() + b"\n"])
    except (CommandError, LogError, StudyError, TranslationError, OSError) as error:
        print(f"grow_dictionary.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out / 'record.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
