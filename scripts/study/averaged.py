"""The last checkpoints of a training, averaged and scored; trainings that begin in the middle of another."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from scripts.common.commands import Step
from scripts.common.seeds import spread
from scripts.study.study import Folders, generate_step
from scripts.study.study_config import Study, Variant
from scripts.study.trained_on import validated_bits, validation_step
from scripts.study.translations import against, read_translations, score

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


def scored_rows(folders: Mapping[Any, list[Path]], references: list[str]) -> list[dict[str, Any]]:
    """What a record says of the seeds of each model that ``scored_steps`` scored: bits, BLEU, lengths.

    Args:
        folders: of the seeds, by model; the first is what others are compared with.
        references: lines of the test set.
    """
    lines = [
        [read_translations(each / "test.txt", len(references)) for each in of] for of in folders.values()
    ]
    base, rows = [score(each, references) for each in lines[0]], []
    for of, own in zip(folders.values(), lines, strict=True):
        beside, scores = against(own, None if own is lines[0] else lines[0], references)
        rows.append(
            {
                "bits": spread([validated_bits(each / "valid.log") for each in of]),
                **beside,
                "length": fmean(each.length / first.length for each, first in zip(scores, base, strict=True)),
            }
        )
    return rows
