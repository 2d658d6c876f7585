"""Trainings as the check runs them: output layers, sizes, and the flags of ``fairseq-train``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scripts.gpu.made_data import SOURCE, TARGET, Text
from scripts.gpu.parts import Settings
from scripts.gpu.workshop import ROOT

PLUGIN = ("--user-dir", str(ROOT / "mhe_fairseq"))

_STOCK = ("--arch", "transformer", "--criterion", "label_smoothed_cross_entropy")
_OURS = ("--arch", "mhe_transformer", "--criterion", "mhe_cross_entropy")
_TIED = ("--share-all-embeddings",)
_CODES = "--mhe-codebook"


@dataclass(frozen=True)
class Layer:
    """An output layer, as people train it.

    Attributes:
        flags: of ``fairseq-train``.
        against: the layer that it is compared with.
        codes: it takes a codebook; in random order, as a learned one is for the embedding's rows.
    """

    flags: tuple[str, ...]
    against: str = "stock"
    codes: bool = False


LAYERS: dict[str, Layer] = {
    "stock": Layer(_STOCK + _TIED),
    "cascade-tied": Layer((*_OURS, *_TIED, "--mhe-head", "cascade"), codes=True),
    "sampling": Layer((*_OURS, *_TIED, "--mhe-head", "sampling"), codes=True),
    "product": Layer((*_OURS, *_TIED, "--mhe-head", "product"), codes=True),
    "mixture": Layer((*_OURS, *_TIED, "--mhe-head", "product", "--mhe-mixtures", "8"), codes=True),
    "stock, not tied": Layer(_STOCK, against="stock, not tied"),
    "cascade": Layer((*_OURS, "--mhe-head", "cascade"), against="stock, not tied", codes=True),
}


@dataclass(frozen=True)
class Size:
    """Of a training.

    Attributes:
        body: flags of the transformer.
        tokens: of an update, at most.
        updates: of a command.
        warm_up: of these, that are not measured.
        interval: updates that a line of the log tells of.
        sentences: of the training set.
        shortest: words of the shortest.
        longest: of the longest.
    """

    body: tuple[str, ...]
    tokens: int
    updates: int
    warm_up: int
    interval: int
    sentences: int
    shortest: int
    longest: int


#: Sentences have all lengths from 5 to 45, and batches all shapes, as a real corpus's have.
_SIZE = Size((), 8192, 40, 15, 5, 24_000, 5, 45)
_SMOKE = Size(
    ("--encoder-layers", "1", "--decoder-layers", "1", "--encoder-attention-heads", "2",
     "--decoder-attention-heads", "2", "--encoder-embed-dim", "16", "--decoder-embed-dim", "16",
     "--encoder-ffn-embed-dim", "16", "--decoder-ffn-embed-dim", "16"),
    24, 2, 1, 1, 30, 2, 6,
)  # fmt: skip


def vocabs(settings: Settings) -> tuple[int, ...]:
    return (120,) if settings.smoke else (32_768, 262_144)


def size(settings: Settings) -> Size:
    return _SMOKE if settings.smoke else _SIZE


def place(settings: Settings, precision: str) -> list[str]:
    """Flags of the device and the type: fp16, which fairseq has for GPUs only, is fp32 on the CPU."""
    if settings.device.type == "cpu":
        return ["--cpu", "--num-workers", "0", *(["--bf16"] if precision == "bf16" else [])]
    return [] if precision == "fp32" else [f"--{precision}"]


def text(vocab: int, settings: Settings) -> Text:
    of = size(settings)
    return Text(vocab, (("train", of.sentences),), of.shortest, of.longest)


def line(layer: str, data: Path, settings: Settings) -> list[str]:
    """The flags of a training of a layer on this data, for any precision. Where one is given twice, the last
    counts."""
    of, chosen = size(settings), LAYERS[layer]
    return [
        str(data), "-s", SOURCE, "-t", TARGET, *PLUGIN, *chosen.flags, *of.body,
        *((_CODES, str(data / "codes")) if chosen.codes else ()),
        "--label-smoothing", "0.1", "--optimizer", "adam", "--adam-betas", "(0.9, 0.98)", "--lr", "0.0005",
        "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "4000", "--max-tokens", str(of.tokens),
        "--disable-validation", "--save-dir", str(data / "none"), "--seed", "1", "--log-format", "json",
        "--log-interval", str(of.interval),
    ]  # fmt: skip
