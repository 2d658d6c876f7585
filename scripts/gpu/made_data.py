"""Made-up text, binarised: words of Zipf's frequencies, sentences of many lengths. Seconds, for any V.

As a command, ``python -m scripts.gpu.made_data FOLDER TEXT``: a ``Text`` as a JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy
import torch

from mhe_fairseq.coding import Codebook, plan_lengths, symbols_fingerprint
from scripts.gpu.parts import Settings
from scripts.gpu.workshop import Workshop

SOURCE, TARGET = "src", "tgt"

#: fairseq's special symbols, tokens 0 to 3 of every dictionary.
_SPECIALS = ("<s>", "<pad>", "</s>", "<unk>")
_EOS = 2


@dataclass(frozen=True)
class Text:
    """What to make.

    Attributes:
        vocab: V, special symbols counted.
        sentences: (split, number of sentences) of each.
        shortest: words of the shortest sentences.
        longest: of the longest; all lengths between are as frequent.
        pairs: sentences have translations, as unrelated as all of it.
    """

    vocab: int
    sentences: tuple[tuple[str, int], ...]
    shortest: int
    longest: int
    pairs: bool = True


def made(text: Text, settings: Settings) -> Path:
    """The folder of this text, made when first asked for; ``codes`` there is a codebook in random order.

    Raises:
        RuntimeError: it could not be made.
    """
    shop = settings.workshop
    return shop.once(text, lambda: _command(text, shop))


def _command(text: Text, shop: Workshop) -> Path:
    folder = shop.folder / f"data{len(list(shop.folder.glob('data*')))}"
    folder.mkdir()
    ran = shop.run("scripts.gpu.made_data", [str(folder), json.dumps(asdict(text))])
    if ran.status:
        raise RuntimeError(f"no data: {ran.trouble}")
    return folder


def make(folder: Path, text: Text) -> None:
    """Write it as ``fairseq-preprocess`` does, and the codebook."""
    rng = numpy.random.default_rng(text.vocab)
    words = [f"w{number}" for number in range(text.vocab - len(_SPECIALS))]
    lines = "".join(f"{word} {len(words) - number}\n" for number, word in enumerate(words))
    for side in (f".{SOURCE}", f".{TARGET}") if text.pairs else ("",):
        (folder / f"dict{side}.txt").write_text(lines, encoding="utf-8")
    for split, count in text.sentences:
        middle = (f".{SOURCE}-{TARGET}.{SOURCE}", f".{SOURCE}-{TARGET}.{TARGET}") if text.pairs else ("",)
        # A translation is as long as its source: what is padded is padded on both sides.
        lengths = rng.integers(text.shortest, text.longest + 1, count)
        for part in middle:
            _write(folder / f"{split}{part}", _sentences(lengths, text.vocab, rng), text.vocab)
    slots = torch.randperm(text.vocab, generator=torch.Generator().manual_seed(1))
    Codebook(plan_lengths(text.vocab), slots, dictionary=symbols_fingerprint([*_SPECIALS, *words])).save(
        folder / "codes"
    )


def _sentences(
    lengths: numpy.ndarray[Any, Any], vocab: int, rng: numpy.random.Generator
) -> Iterator[torch.Tensor]:
    """Of words and EOS: word number n is n times as rare as the first."""
    total = numpy.cumsum(1 / numpy.arange(1, vocab - len(_SPECIALS) + 1))
    drawn = numpy.searchsorted(total, rng.random(int(lengths.sum())) * total[-1])
    drawn = numpy.minimum(drawn, len(total) - 1) + len(_SPECIALS)
    for words in numpy.split(drawn, numpy.cumsum(lengths)[:-1]):
        yield torch.from_numpy(numpy.append(words, _EOS))


def _write(path: Path, sentences: Iterator[torch.Tensor], vocab: int) -> None:
    from fairseq.data import indexed_dataset

    builder = indexed_dataset.make_builder(f"{path}.bin", impl="mmap", vocab_size=vocab)
    for sentence in sentences:
        builder.add_item(sentence)
    builder.finalize(f"{path}.idx")


def main() -> None:
    wanted = json.loads(sys.argv[2])
    wanted["sentences"] = tuple((split, count) for split, count in wanted["sentences"])
    make(Path(sys.argv[1]), Text(**wanted))


if __name__ == "__main__":
    main()
