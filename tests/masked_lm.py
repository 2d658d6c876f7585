"""Masked language models of the toy corpus, and classifiers made of them, as a user would train them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.commands import ALL_SENTENCES, PLUGIN
from tests.helpers import run_command

#: The model without --arch: fairseq's roberta takes the same.
SMALL = [
    "--encoder-layers", "1", "--encoder-embed-dim", "32", "--encoder-ffn-embed-dim", "32",
    "--encoder-attention-heads", "2",
]  # fmt: skip
MASKED = ["--task", "masked_lm", "--tokens-per-sample", "40", "--sample-break-mode", "eos"]
CPU = ["--cpu", "--num-workers", "0"]
COMMON = [
    *SMALL, "--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *CPU,
    "--seed", "1", "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints", *ALL_SENTENCES,
]  # fmt: skip


@dataclass
class Ended:
    """How a command ended, and all it said."""

    status: int
    said: str

    @property
    def last(self) -> str:
        """Its last line."""
        return self.said.rstrip().splitlines()[-1]


def run_lines(folder: Path, lines: Mapping[str, Sequence[str]]) -> dict[str, Ended]:
    """Run commands one after the other: name -> [command, *arguments], of fairseq or ``python``. What each
    says is kept in ``folder``, too."""
    folder.mkdir(parents=True, exist_ok=True)
    found = {}
    for name, (command, *arguments) in lines.items():
        program = command if command == "python" else f"fairseq-{command.replace('_', '-')}"
        done = run_command([program, *arguments], check=False, merged=True)
        (folder / f"{name.replace(' ', '-')}.log").write_text(done.stdout)
        found[name] = Ended(done.returncode, done.stdout)
    return found


def pretrain(data: Path, save_dir: Path, *flags: str, arch: str = "mhe_roberta_base") -> list[str]:
    """A line for ``run_lines``: train a masked language model."""
    criterion = [] if "--criterion" in flags else ["--criterion", "mhe_masked_lm"]
    common = COMMON if "roberta" in arch else COMMON[len(SMALL) :]
    return [
        "train", str(data), *PLUGIN, *MASKED, "--mask-prob", "0.3", "--arch", arch, *criterion, *common,
        "--save-dir", str(save_dir), *flags,
    ]  # fmt: skip


def classify(data: Path, save_dir: Path, *flags: str, arch: str = "mhe_roberta_base") -> list[str]:
    """A line for ``run_lines``: train a classifier of the two labels of ``write_labelled``; start it with
    ``from_pretrained``."""
    plugin = PLUGIN if arch.startswith("mhe_") else []
    return [
        "train", str(data), *plugin, "--task", "sentence_prediction", "--criterion", "sentence_prediction",
        "--arch", arch, "--num-classes", "2", "--init-token", "0", "--separator-token", "2",
        "--classification-head-name", "halves", "--max-positions", "40", *COMMON, "--save-dir", str(save_dir),
        "--best-checkpoint-metric", "accuracy", "--maximize-best-checkpoint-metric", *flags,
    ]  # fmt: skip


def from_pretrained(checkpoint: Path) -> list[str]:
    """The flags that start a training from another one's weights."""
    return [
        "--restore-file",
        str(checkpoint),
        "--reset-optimizer",
        "--reset-dataloader",
        "--reset-meters",
    ] + ["--reset-lr-scheduler"]


def write_labelled(text: Path, folder: Path) -> None:
    """Label the toy sentences in ``text`` by whether they have a certain word, which half of them do."""
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "valid", "test"):
        lines = (text / split).read_text().splitlines()
        labelled = [f"{'with' if 'BE' in line.split() else 'without'}\t{line}" for line in lines]
        (folder / f"{split}.tsv").write_text("\n".join(labelled) + "\n")
