"""A toy of many languages in one model, as a user would train and ask it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.commands import ALL_SENTENCES, CRITERION, PLUGIN
from tests.helpers import TOY_SIZES, TOY_SOURCE, TOY_TARGET, run_command, write_toy_corpus
from tests.masked_lm import run_lines

LANGS = ["aa", "bb", "cc"]
PAIRS = ["aa-bb", "bb-aa", "aa-cc"]
#: Sentences of the pairs but aa-bb, which has those of the toy corpus.
FEW = {"train": 60, "valid": 20, "test": 20}
#: Languages that are aa with a letter behind every word.
LETTERS = {"cc": "x", "dd": "y"}

MULTI = "translation_multi_simple_epoch"
#: What a training and a translation of the toy have in common.
LANGUAGES = [
    "--lang-pairs", ",".join(PAIRS), "--langs", ",".join(LANGS), "--encoder-langtok", "tgt",
    "--decoder-langtok",
]  # fmt: skip
TRAIN = [
    "--arch", "mhe_transformer_tiny", "--share-all-embeddings", *CRITERION, "--optimizer", "adam",
    "--lr", "0.005", "--clip-norm", "1.0", "--max-tokens", "500", *ALL_SENTENCES, "--cpu",
    "--num-workers", "0", "--seed", "1", "--log-format", "json", "--log-interval", "1",
    "--no-epoch-checkpoints", "--sampling-method", "temperature", "--sampling-temperature", "2",
]  # fmt: skip


def make_many_data(folder: Path, others: Sequence[str] = ("cc",)) -> Path:
    """A data-bin folder of languages with one dictionary: aa, the toy corpus' first side; bb, its capitals;
    and ``others`` of ``LETTERS``, each beside aa. The plain text lies in ``folder/text``, as
    ``train.aa-bb.aa``."""
    text, data = folder / "text", folder / "data-bin"
    text.mkdir(parents=True)
    for seed, second in enumerate(["bb", *others]):
        made, sizes = folder / f"made{seed}", FEW if seed else TOY_SIZES
        write_toy_corpus(made, sizes, seed)
        for split in sizes:
            lines = (made / f"{split}.{TOY_TARGET}").read_text().splitlines()
            if letter := LETTERS.get(second):
                lines = [" ".join(f"{word.lower()}{letter}" for word in line.split()) for line in lines]
            (text / f"{split}.aa-{second}.aa").write_text((made / f"{split}.{TOY_SOURCE}").read_text())
            (text / f"{split}.aa-{second}.{second}").write_text("\n".join(lines) + "\n")
    words = Counter(
        word for path in sorted(text.glob("train.*")) for word in path.read_text().split()
    ).most_common()
    (folder / "dict.txt").write_text("".join(f"{word} {count}\n" for word, count in words))
    for second in ("bb", *others):
        run_command(
            ["fairseq-preprocess", "-s", "aa", "-t", second, "--joined-dictionary"]
            + ["--srcdict", str(folder / "dict.txt"), "--destdir", str(data), "--workers", "1"]
            + [f"--{split}pref={text / f'{split}.aa-{second}'}" for split in TOY_SIZES],
            cwd=folder,
        )
    return data


def train_many(
    data: Path, folder: Path, runs: Mapping[str, tuple[str, Sequence[str]]], updates: int = 60
) -> dict[str, Path]:
    """Checkpoints by the name of a run: (task, more flags). Logs are ``folder/NAME.log``."""
    lines = {
        name: ["train", str(data), *PLUGIN, "--task", task, *LANGUAGES, *TRAIN]
        + ["--save-dir", str(folder / name), "--max-update", str(updates), *flags]
        for name, (task, flags) in runs.items()
    }
    for name, ended in run_lines(folder, lines).items():
        assert ended.status == 0, f"{name}: {ended.said[-3000:]}"
    return {name: folder / name / "checkpoint_last.pt" for name in runs}


def train_three(data: Path, folder: Path) -> dict[str, Path]:
    """A product and a sampling head trained with our task, and a cascade with fairseq's and a codebook."""
    codes = str(folder / "codes")
    learnt = ["mhe", "assign", "--data", str(data), *LANGUAGES[:4], "--lengths", "10,14", "-o", codes]
    run_command([*learnt, "--sampling-method", "temperature", "--sampling-temperature", "2"])
    return train_many(
        data,
        folder,
        {
            "product": (f"mhe_{MULTI}", ["--mhe-head", "product", "--mhe-mixtures", "2"]),
            "cascade": (MULTI, ["--mhe-head", "cascade", "--mhe-codebook", codes]),
            "sampling": (f"mhe_{MULTI}", ["--mhe-head", "sampling", "--virtual-epoch-size", "100"]),
        },
    )
