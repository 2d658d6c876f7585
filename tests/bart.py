"""BART and mBART of the toy corpus: what they are pretrained on, and lines for ``run_lines``."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.commands import ALL_SENTENCES, PAIR, PLUGIN
from tests.helpers import TOY_SOURCE, TOY_TARGET, run_command

LANGS = f"{TOY_SOURCE},{TOY_TARGET}"
#: Noise of a sentence a sample; fairseq's own noise rotates half of them.
NOISE = [
    "--tokens-per-sample", "40", "--sample-break-mode", "eos", "--mask", "0.3", "--mask-length", "subword",
    "--replace-length", "1", "--rotate", "0", "--permute-sentences", "0",
]  # fmt: skip
DENOISING = ["--task", "denoising", *NOISE]
MULTILINGUAL = ["--task", "multilingual_denoising", "--langs", LANGS, "--add-lang-token", *NOISE]

#: The model without --arch.
SMALL = [
    word
    for side in ("encoder", "decoder")
    for word in (f"--{side}-layers", "1", f"--{side}-embed-dim", "32", f"--{side}-ffn-embed-dim", "32")
    + (f"--{side}-attention-heads", "2")
]  # fmt: skip
CPU = ["--cpu", "--num-workers", "0"]
COMMON = [
    *SMALL, "--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *CPU,
    "--seed", "1", "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints", *ALL_SENTENCES,
]  # fmt: skip
CRITERION = ["--criterion", "mhe_cross_entropy", "--label-smoothing", "0.1"]
STOCK_CRITERION = ["--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1"]


def make_mono_data(toy: Path, folder: Path) -> Path:
    """The two sides of the toy corpus as texts of two languages, with the one dictionary of ``toy``, a
    data-bin folder: ``folder``/dict.txt, and a folder of each language."""
    dictionary, text = toy / f"dict.{TOY_SOURCE}.txt", toy.parent / "text"
    for lang in (TOY_SOURCE, TOY_TARGET):
        run_command(
            ["fairseq-preprocess", "--only-source", "--srcdict", str(dictionary), "--workers", "1"]
            + [f"--{split}pref={text / split}.{lang}" for split in ("train", "valid")]
            + ["--destdir", str(folder / lang)]
        )
    shutil.copy(dictionary, folder / "dict.txt")
    return folder


def train(
    data: Path, save_dir: Path, *flags: str, arch: str = "mhe_bart_base", updates: int = 12
) -> list[str]:
    """A line that trains; the task is among the flags, and a criterion where it is not ours."""
    criterion = [] if "--criterion" in flags else CRITERION
    return [
        "train", str(data), *PLUGIN, "--arch", arch, *criterion, *COMMON, "--save-dir", str(save_dir),
        "--max-update", str(updates), *flags,
    ]  # fmt: skip


def validate(data: Path, checkpoint: Path, *flags: str) -> list[str]:
    return [
        "validate", str(data), *PLUGIN, *flags, "--path", str(checkpoint), "--max-tokens", "500",
        *ALL_SENTENCES, *CPU, "--log-format", "json",
    ]  # fmt: skip


def generate(data: Path, checkpoint: Path, *flags: str) -> list[str]:
    """A line that translates the test set of the toy corpus."""
    return [
        "generate", str(data), *PLUGIN, *PAIR, "--path", str(checkpoint), *CPU, *ALL_SENTENCES, "--beam", "3",
        "--max-len-a", "1", "--max-len-b", "4", *flags,
    ]  # fmt: skip
