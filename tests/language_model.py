"""Language models of the toy corpus, as a user would train and ask them."""

from __future__ import annotations

from pathlib import Path

import torch
from fairseq.data import Dictionary

from mhe_fairseq.coding import Codebook, symbols_fingerprint
from tests.commands import ALL_SENTENCES, CRITERION, PLUGIN
from tests.helpers import TOY_SIZES, TOY_TARGET, run_command, write_toy_corpus

LM = ["--task", "language_modeling", "--tokens-per-sample", "40", "--sample-break-mode", "eos"]
CPU = ["--cpu", "--num-workers", "0"]
SMALL = ["--decoder-layers", "1", "--decoder-attention-heads", "2"] + [
    word
    for flag in ("embed", "input", "output", "ffn-embed")
    for word in (f"--decoder-{flag}-dim", "32")
]  # fmt: skip


def make_lm_data(folder: Path) -> Path:
    """One side of the toy corpus binarised for language models; the text lies in ``folder/text``."""
    text, data = folder / "text", folder / "data-bin"
    write_toy_corpus(text)
    for split in TOY_SIZES:
        (text / f"{split}.{TOY_TARGET}").rename(text / split)
    run_command(
        ["fairseq-preprocess", "--only-source", "--destdir", str(data), "--workers", "1"]
        + [f"--{split}pref={text / split}" for split in TOY_SIZES],
        cwd=folder,
    )
    return data


def lm_train(data: Path, *runs: tuple[Path, str, list[str]]) -> list[str]:
    """fairseq-train of tiny language models, and what each run logged; every line of it is JSON.

    Args:
        data: from ``make_lm_data``.
        runs: where to save, what follows ``mhe_transformer_lm`` in --arch, more flags.
    """
    logs = []
    for save_dir, arch, flags in runs:
        line = [
            "fairseq-train", str(data), *PLUGIN, *LM, "--arch", f"mhe_transformer_lm{arch}", *CRITERION,
            "--optimizer", "adam", "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *CPU,
            "--seed", "1", "--log-format", "json", "--log-interval", "1", "--no-epoch-checkpoints",
            *ALL_SENTENCES, "--save-dir", str(save_dir), *flags,
        ]  # fmt: skip
        logs.append(run_command(line, merged=True).stdout)
    return logs


def train_three(data: Path, folder: Path) -> dict[str, Path]:
    """Train a head each, of three architectures: plain, tied, and with adaptive input. The codebook file of
    the first is gone when it is done. What each logged is in ``log`` beside its checkpoint."""
    codes = folder / "codes"
    slots = torch.randperm(48, generator=torch.Generator().manual_seed(3))
    symbols = Dictionary.load(str(data / "dict.txt")).symbols
    Codebook((6, 8), slots, dictionary=symbols_fingerprint(symbols)).save(codes)
    heads = {
        "product": (
            "",
            [*SMALL, "--mhe-head", "product", "--mhe-mixtures", "2", "--mhe-codebook", str(codes)],
        ),
        "cascade": ("_gpt2_tiny", ["--mhe-head", "cascade", "--share-decoder-input-output-embed"]),
        "sampling": (
            "_wiki103",
            [*SMALL, "--mhe-head", "sampling", "--mhe-groups", "3", "--adaptive-input-cutoff", "16,32"],
        ),
    }
    runs = [(folder / name, arch, [*flags, "--max-update", "40"]) for name, (arch, flags) in heads.items()]
    for name, said in zip(heads, lm_train(data, *runs), strict=True):
        (folder / name / "log").write_text(said)
    codes.unlink()
    return {name: folder / name / "checkpoint_best.pt" for name in heads}
