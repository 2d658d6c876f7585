"""What the studies of `mhe convert` share: the command that it prints, validations, and rows of a record."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path
from typing import Any

from scripts.common.commands import Step
from scripts.common.curves import read_log
from scripts.study.study import Folders, generate_step
from scripts.study.study_config import Study, StudyError
from scripts.study.translations import read_translations, score


class Trained:
    """A training of a comparison.

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


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def with_flags(words: list[str], **values: str | None) -> list[str]:
    """A command with the values of some of its flags replaced; None: without the flag."""
    made = list(words)
    for name, value in values.items():
        place = made.index(flag(name))
        made[place : place + 2] = [] if value is None else [flag(name), value]
    return made


def value_of(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def train_on_step(line: list[str], folder: Path, seed: int) -> Step:
    """A command as `mhe convert` prints it, on the CPU, validated after its last update."""
    updates = value_of(line, "--max-update")
    words = with_flags(line, save_dir=str(folder / "checkpoints"))
    words = with_flags(words, seed=None) if "--seed" in words else words
    words += ["--cpu", "--num-workers", "0", "--update-epoch-batch-itr", "True", "--no-epoch-checkpoints"]
    words += ["--log-format", "json", "--log-interval", str(min(10, int(updates))), "--seed", str(seed)]
    words += ["--validate-interval", "1000", "--validate-interval-updates", updates]
    words += ["--save-interval-updates", updates, "--keep-interval-updates", "1"]
    return Step(
        "train", words, folder / "checkpoints" / "checkpoint_last.pt", folder / "train.log", append=True
    )


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


def row(model: str, updates: int, bits: float, lines: list[str], references: list[str]) -> dict[str, Any]:
    """Of a record, with the keys of ``COLUMNS`` and "model"; p is to be filled in."""
    scores = score(lines, references)
    return {
        "model": model, "updates": updates, "bits": round(bits, 3), "bleu": round(scores.bleu, 2),
        "chrf": round(scores.chrf, 2), "p": None,
    }  # fmt: skip
