"""A toy set of documents with labels, and models that give them, as a user would make them."""

from __future__ import annotations

import random
from pathlib import Path

from tests.commands import ALL_SENTENCES, PLUGIN
from tests.helpers import run_command
from tests.masked_lm import CPU

#: One has a blank, one a comma.
LABELS = ("New York", "bread, white", *"cdefghijkl")
SIZES = {"train": 200, "valid": 40, "test": 40}


def write_documents(folder: Path, seed: int = 0) -> None:
    """``{train,valid,test}.tsv``: every label has three words that only its documents have."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split, size in SIZES.items():
        lines = []
        for _ in range(size):
            chosen = rng.sample(range(len(LABELS)), rng.randint(1, 3))
            words = [f"w{label}{rng.choice('abc')}" for label in chosen for _ in range(4)]
            names = [f'"{LABELS[label]}"' if "," in LABELS[label] else LABELS[label] for label in chosen]
            lines.append(f"{','.join(names)}\t{' '.join(words)} and so on")
        if split == "train":
            lines[3], lines[5], lines[6] = "\tno label here", "c,d\t", "c,c\tw2a w2b"
        if split == "test":
            lines[0], lines[1] = "unheard\tw1a", "\tw3a w3b w3c w3a"
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")


def prepare(source: Path, out: Path, *flags: str, check: bool = True) -> str:
    """What the script says, of both streams."""
    line = ["python", "scripts/data/prepare_multilabel.py", "--source", str(source), "--out", str(out)]
    return run_command([*line, *flags], check=check, merged=True).stdout


def train_line(prepared: Path, save_dir: Path, *flags: str, arch: str = "mhe_label_bag_tiny") -> list[str]:
    """A fairseq-train command."""
    return [
        "fairseq-train", str(prepared / "data-bin"), *PLUGIN, "--task", "mhe_multilabel", "--criterion",
        "mhe_multilabel", "--arch", arch, "--optimizer", "adam", "--lr", "0.01", "--batch-size", "32",
        *ALL_SENTENCES, *CPU, "--seed", "1", "--log-format", "json", "--log-interval", "1",
        "--no-epoch-checkpoints", "--save-dir", str(save_dir), *flags,
    ]  # fmt: skip
