"""The last checkpoints of a training, averaged and scored; trainings that begin in the middle of another."""

from __future__ import annotations

import math
import os
from dataclasses import replace
from pathlib import Path

from scripts.common.commands import Step
from scripts.study.study import Folders, generate_step
from scripts.study.study_config import Study, Variant
from scripts.study.trained_on import validation_step

#: Checkpoints that are averaged.
AVERAGED = 4


def begun(step: Step, earlier: Path, update: int) -> Step:
    """A training that begins with the checkpoint after an update of another one, in ``earlier``."""
    found = sorted(_saved(earlier).items())
    path = max((each for each in found if each[0] <= update), default=(0, None))[1]
    return step if path is None else replace(step, words=[*step.words, "--restore-file", str(path)])


def exactly(variant: Variant, name: str, share: float, updates: int) -> tuple[Variant, int]:
    """Of a variant with a sampling head: one whose last updates, ``share`` of all, are exact; and the last
    update before them."""
    flags = f"{variant.train} --mhe-exact-last {share}"
    return replace(variant, name=name, train=flags), updates - math.ceil(share * updates)


def link_checkpoints(folder: Path, earlier: Path, first: int, last: int) -> None:
    """Give ``folder`` the checkpoints of another training after ``first`` to ``last`` updates."""
    folder.mkdir(parents=True, exist_ok=True)
    for update, path in _saved(earlier).items():
        there = folder / path.name
        if first <= update <= last and not there.exists():
            os.link(path, there)


def _saved(folder: Path) -> dict[int, Path]:
    """Checkpoints by update."""
    return {int(path.stem.rsplit("_", 1)[1]): path for path in folder.glob("checkpoint_*_*.pt")}


def scored_steps(study: Study, where: Folders, step: Step, folder: Path) -> list[Step]:
    """Average the last of ``folder``/checkpoints, validate and translate with that; ``step`` trained them."""
    averaged = folder / "averaged.pt"
    words = ["python", "scripts/recipes/average_checkpoints.py", str(folder / "checkpoints")]
    words += ["--last", str(AVERAGED), "-o", str(averaged)]
    return [
        Step("average", words, averaged, folder / "average.log"),
        validation_step("valid", where.data, averaged, folder),
        generate_step(study, where, folder, averaged, "test", step),
    ]
