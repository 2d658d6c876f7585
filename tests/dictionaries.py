"""The toy corpus binarised with other dictionaries."""

from __future__ import annotations

import random
from collections.abc import Iterable
from pathlib import Path

from tests.helpers import TOY_SIZES, TOY_SOURCE, TOY_TARGET, run_command, write_toy_corpus

#: Words that are one piece in the larger dictionary, of either side.
WHOLE = ("ba", "be", "bi", "bo", "bu", "da", "de", "di")


def shuffled(data: Path, folder: Path, seed: int = 1) -> Path:
    """A data-bin folder of the same text, symbols of its dictionaries in another order.

    Args:
        data: from ``helpers.make_toy_data`` or ``language_model.make_lm_data``.
        folder: to write to.
        seed: of the order.
    """
    text, made = data.parent / "text", folder / "data-bin"
    folder.mkdir(parents=True, exist_ok=True)
    is_pair = (data / f"dict.{TOY_SOURCE}.txt").is_file()
    lines = (data / (f"dict.{TOY_SOURCE}.txt" if is_pair else "dict.txt")).read_text("utf-8").splitlines()
    random.Random(seed).shuffle(lines)
    (folder / "symbols").write_text("\n".join(lines) + "\n", "utf-8")
    sides = ["-s", TOY_SOURCE, "-t", TOY_TARGET, "--joined-dictionary"] if is_pair else ["--only-source"]
    binarise(made, text, [*sides, "--srcdict", str(folder / "symbols")])
    return made


def in_pieces(folder: Path, whole: Iterable[str] = (), dropped: int = 0) -> Path:
    """A data-bin folder of the toy corpus in pieces as sentencepiece writes them: a word is its two letters,
    or one piece. Both sides have one dictionary, which fairseq-preprocess pads.

    Args:
        folder: to write to.
        whole: words that are one piece.
        dropped: that many lines of the training text end with a piece of their own, ``▁old``.
    """
    text, made, whole = folder / "text", folder / "data-bin", set(whole)
    write_toy_corpus(text)
    for split in TOY_SIZES:
        for side in (TOY_SOURCE, TOY_TARGET):
            path = text / f"{split}.{side}"
            lines = [
                " ".join(
                    f"▁{word}" if word.lower() in whole else f"▁{word[0]} {word[1]}" for word in line.split()
                )
                for line in path.read_text("utf-8").splitlines()
            ]
            if split == "train":
                lines = [f"{line} ▁old" if number < dropped else line for number, line in enumerate(lines)]
            path.write_text("\n".join(lines) + "\n", "utf-8")
    binarise(made, text, ["-s", TOY_SOURCE, "-t", TOY_TARGET, "--joined-dictionary"])
    return made


def binarise(made: Path, text: Path, flags: list[str]) -> None:
    line = ["fairseq-preprocess", *flags, "--destdir", str(made), "--workers", "1"]
    run_command([*line, *(f"--{split}pref={text / split}" for split in TOY_SIZES)])
