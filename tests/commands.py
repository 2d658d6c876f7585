"""Trainings and translations of the toy corpus, as a user would type them."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.helpers import REPO, TOY_SOURCE, TOY_TARGET, run_command

PLUGIN = ["--user-dir", str(REPO / "mhe_fairseq")]
PAIR = ["-s", TOY_SOURCE, "-t", TOY_TARGET]
ALL_SENTENCES = ["--required-batch-size-multiple", "1"]
#: Updates take half of the time that two layers a side would take.
LAYERS = ["--encoder-layers", "1", "--decoder-layers", "1"]
#: Of a training that is looked at when it has ended: an epoch of the toy corpus is four updates.
AT_THE_END = ["--validate-interval", "1000", "--save-interval", "1000"]
CRITERION = ["--criterion", "mhe_cross_entropy", "--label-smoothing", "0.1"]


def train_line(data: Path, save_dir: Path, *flags: str, arch: str = "mhe_transformer_tiny") -> list[str]:
    """A fairseq-train command over the toy corpus: tiny model, every line of its log is JSON. With
    ``--no-epoch-checkpoints`` it validates and saves at the end alone."""
    ends = AT_THE_END if "--no-epoch-checkpoints" in flags else []
    return [
        "fairseq-train", str(data), *PLUGIN, *PAIR, "--arch", arch, *LAYERS,
        "--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *ALL_SENTENCES,
        "--cpu", "--num-workers", "0", "--seed", "1", "--log-format", "json", "--log-interval", "1",
        "--save-dir", str(save_dir), *ends, *flags,
    ]  # fmt: skip


def train(data: Path, save_dir: Path, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``train_line``; ``arch`` goes to it, everything else to ``run_command``."""
    arch = options.pop("arch", "mhe_transformer_tiny")
    return run_command(train_line(data, save_dir, *flags, arch=arch), **options)


def generate(data: Path, checkpoint: Path, *flags: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """fairseq-generate on the toy test set."""
    return run_command(
        ["fairseq-generate", str(data), *PLUGIN, *PAIR, "--path", str(checkpoint), "--cpu", *ALL_SENTENCES]
        + ["--max-len-a", "1.5", "--max-len-b", "5", *flags],
        **options,
    )


def logged(output: str, key: str, kind: str = "train_inner") -> list[float]:
    """The values of ``key`` in the JSON lines of a training's log, in order."""
    values = []
    for line in output.splitlines():
        if f"| {kind} |" in line and "{" in line:
            record = json.loads(line[line.index("{") :])
            if key in record:
                values.append(float(record[key]))
    return values


def hypotheses(output: str) -> dict[int, tuple[float, str]]:
    """Sentence number -> (score, text) of the H lines of fairseq-generate."""
    found = {}
    for line in output.splitlines():
        if line.startswith("H-"):
            number, score, text = line.split("\t")
            found[int(number[2:])] = (float(score), text)
    return found
