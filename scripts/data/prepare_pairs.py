#!/usr/bin/env python3
"""Split several language pairs into the pieces of one sentencepiece model, for many-to-many training.

    python scripts/data/prepare_pairs.py --pair en-de=DIR --pair en-fr=DIR2 --out DIR3 --vocab-size 32000

reads ``DIR/{train,valid,test}.{en,de}`` (plain or ``.xz``) and so on. Writes under ``--out``: ``spm.model``;
``dict.txt``, for ``fairseq-preprocess --srcdict dict.txt --joined-dictionary``; for each pair
``pieces/{train,valid,test}.en-de.{en,de}``, and ``text/`` with the same names. Languages may have other names
in the model than their files end with: ``--pair en2-de2=DIR:en-de``.

All languages share the pieces. A pair's training text is read as it is: small ones are not repeated.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import sentencepiece

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.files import (  # noqa: E402
    SPLITS,
    PrepareError,
    keep_settings,
    run_script,
    step,
    train_pieces,
)
from scripts.data.arguments import preparing  # noqa: E402
from scripts.data.binarise import all_pieces, dictionary  # noqa: E402
from scripts.data.prepare_data import check, encoded, find_source, plain  # noqa: E402


@dataclass(frozen=True)
class Pair:
    """Of two languages.

    Attributes:
        names: in the model.
        folder: of its text.
        endings: of its files.
    """

    names: tuple[str, str]
    folder: Path
    endings: tuple[str, str]

    @classmethod
    def read(cls, text: str) -> Pair:
        """From ``aa-bb=DIR`` or ``aa-bb=DIR:xx-yy``.

        Raises:
            PrepareError: it is neither.
        """
        named, _, place = text.partition("=")
        folder, _, endings = place.partition(":")
        names, files = named.split("-"), (endings or named).split("-")
        if len(names) != 2 or len(files) != 2 or not all([*names, *files, folder]) or names[0] == names[1]:
            raise PrepareError(f"--pair {text} is not two languages and a folder, such as en-de=DIR")
        return cls((names[0], names[1]), Path(folder), (files[0], files[1]))

    def __str__(self) -> str:
        return "-".join(self.names)


def prepare(pairs: list[Pair], out: Path, vocab_size: int) -> None:
    """Check, unpack, train the pieces, encode, count.

    Raises:
        PrepareError: two pairs of the same languages, or text that ``check`` refuses.
    """
    found = [frozenset(pair.names) for pair in pairs]
    for number, pair in enumerate(pairs):
        if found[number] in found[:number]:
            raise PrepareError(f"--pair {pair} is given twice; a pair is used in both directions")
        if not pair.folder.is_dir():
            raise PrepareError(f"--pair {pair}: {pair.folder} is not a folder")
    if vocab_size < 8:
        raise PrepareError(f"--vocab-size must be at least 8, got {vocab_size}")
    fingerprints = {str(pair): check(pair.folder, *pair.endings) for pair in pairs}
    settings: dict[str, object] = {"vocab_size": vocab_size, "text": fingerprints}
    keep_settings(out / "prepared.json", settings)

    files = {
        f"{split}.{pair}.{name}": find_source(pair.folder, split, ending)
        for pair in pairs
        for split in SPLITS
        for name, ending in zip(pair.names, pair.endings, strict=True)
    }
    for name, path in files.items():
        step(out / "text" / name, partial(plain, path))
    train = [name for name in files if name.startswith("train.")]
    step(out / "spm.model", lambda: [train_pieces([out / "text" / name for name in train], vocab_size)])
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(out / "spm.model"))
    for name in files:
        step(out / "pieces" / name, partial(encoded, out / "text" / name, pieces))
    tokens = [out / "pieces" / name for name in train]
    step(out / "dict.txt", lambda: dictionary(all_pieces(tokens, out / "spm.model"), ()))


def main(argv: list[str] | None = None) -> int:
    parser = preparing(__doc__)
    parser.add_argument(
        "--pair",
        action="append",
        required=True,
        metavar="AA-BB=DIR",
        help="two languages and the folder of their text; may be repeated",
    )
    parser.add_argument(
        "--vocab-size", type=int, default=16000, help="pieces of all languages (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    return run_script(
        "prepare_pairs.py",
        args.out,
        lambda: prepare([Pair.read(text) for text in args.pair], args.out, args.vocab_size),
    )


if __name__ == "__main__":
    sys.exit(main())
