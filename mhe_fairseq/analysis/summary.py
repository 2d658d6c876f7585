"""What the sums over a text say: the numbers of every table."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mhe_fairseq.analysis.bands import EOS, Bands
from mhe_fairseq.analysis.calibration import Bin
from mhe_fairseq.analysis.confusions import GroupPair
from mhe_fairseq.analysis.loss_parts import LossParts


@dataclass(frozen=True)
class Total:
    """Over all target tokens. ``loss`` is nats a token, ``bits`` the same in base 2, as fairseq logs it."""

    tokens: int
    loss: float
    bits: float
    perplexity: float
    accuracy: float
    confidence: float
    calibration_error: float


@dataclass(frozen=True)
class DigitRow:
    """-log p(digit | digits before it).

    Attributes:
        digit: its number, from 1.
        length: values it can have.
        loss: nats a token.
        loss_share: of the total loss.
        accuracy: how often it is the most probable one, given the target's digits before it.
    """

    digit: int
    length: int
    loss: float
    loss_share: float
    accuracy: float


@dataclass(frozen=True)
class BandRow:
    """Targets that are about as frequent in the training text. None: of no tokens, or no predictions.

    Attributes:
        band: its name.
        tokens: target tokens.
        share: of all target tokens.
        loss: nats a token of the band.
        loss_share: of the total loss.
        digit_loss: (H,) nats lost in each digit, a token of the text: bands add up to the digits' loss.
        recall: share of the targets that were predicted.
        precision: share of the predictions that were right.
        mass_share: mean probability of the band at all positions.
        mass_ratio: the same over the band's share of the targets.
    """

    band: str
    tokens: int
    share: float
    loss: float | None
    loss_share: float
    digit_loss: tuple[float, ...]
    recall: float | None
    precision: float | None
    mass_share: float
    mass_ratio: float | None


@dataclass(frozen=True)
class CopiedRow:
    """Targets of a band, those that stand in the source sentence apart from the others. None: of no tokens.

    Attributes:
        band: its name.
        tokens, loss, recall: of those in the source; nats a token.
        loss_share: their share of the total loss.
        other_tokens, other_loss, other_recall: of the others.
    """

    band: str
    tokens: int
    loss: float | None
    recall: float | None
    loss_share: float
    other_tokens: int
    other_loss: float | None
    other_recall: float | None


@dataclass(frozen=True)
class Summary:
    """All of one model."""

    total: Total
    digits: list[DigitRow]
    bands: list[BandRow]
    calibration: list[Bin]
    confused: list[GroupPair]
    copied: list[CopiedRow]


def summarise(
    parts: LossParts, bands: Bands, top: int, pairs: list[tuple[int, int]] | None = None
) -> Summary:
    """The numbers of every table.

    Args:
        parts: sums over the text.
        bands: to group its tokens by.
        top: how many pairs of confused groups.
        pairs: these pairs, in place of the worst ones.
    """
    book = parts.codebook
    count = max(1, parts.tokens)
    digit_loss = parts.digit_loss.sum(dim=0)
    loss = float(digit_loss.sum())
    rows = zip(book.lengths, digit_loss.tolist(), parts.digit_correct.tolist(), strict=True)
    digits = [
        DigitRow(h + 1, length, lost / count, _ratio(lost, loss) or 0.0, correct / count)
        for h, (length, lost, correct) in enumerate(rows)
    ]
    mean = loss / count
    total = Total(
        tokens=parts.tokens,
        loss=mean,
        bits=mean / math.log(2),
        # A model that gives a target next to no probability at all has no finite one.
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        accuracy=int(parts.correct.sum()) / count,
        confidence=parts.calibration.confidence,
        calibration_error=parts.calibration.error,
    )
    worst = parts.confusions.worst(book, top) if pairs is None else parts.confusions.of(book, pairs)
    return Summary(
        total=total,
        digits=digits,
        bands=_band_rows(parts, bands, loss),
        calibration=parts.calibration.bins(),
        confused=worst,
        copied=_copied_rows(parts, bands, loss),
    )


def _band_rows(parts: LossParts, bands: Bands, loss: float) -> list[BandRow]:
    count = max(1, parts.tokens)
    columns = (parts.gold, parts.correct, parts.predicted, parts.mass, parts.digit_loss)
    sums = (bands.sum(column).tolist() for column in columns)
    return [
        BandRow(
            band=name,
            tokens=gold,
            share=gold / count,
            loss=_ratio(sum(lost), gold),
            loss_share=_ratio(sum(lost), loss) or 0.0,
            digit_loss=tuple(each / count for each in lost),
            recall=_ratio(correct, gold),
            precision=_ratio(correct, predicted),
            mass_share=mass / count,
            mass_ratio=_ratio(mass, gold),
        )
        for name, gold, correct, predicted, mass, lost in zip(bands.names, *sums, strict=True)
    ]


def _copied_rows(parts: LossParts, bands: Bands, loss: float) -> list[CopiedRow]:
    """Of every band but EOS, which stands in every source; none where it is not known what stands there."""
    copied = parts.copied
    if not copied.known:
        return []
    columns = (
        parts.gold,
        parts.correct,
        parts.digit_loss.sum(dim=-1),
        copied.gold,
        copied.correct,
        copied.loss,
    )
    sums = (bands.sum(column).tolist() for column in columns)
    return [
        CopiedRow(
            band=name,
            tokens=there,
            loss=_ratio(lost, there),
            recall=_ratio(right, there),
            loss_share=_ratio(lost, loss) or 0.0,
            other_tokens=gold - there,
            other_loss=_ratio(all_lost - lost, gold - there),
            other_recall=_ratio(all_right - right, gold - there),
        )
        for name, gold, all_right, all_lost, there, right, lost in zip(bands.names, *sums, strict=True)
        if name != EOS
    ]


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
