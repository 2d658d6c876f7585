"""The largest items of an analysis in plain sentences."""

from __future__ import annotations

from mhe_fairseq.analysis.bands import EOS, UNSEEN
from mhe_fairseq.analysis.summary import BandRow, Summary

#: Off by less than this, EOS has about its share, a model is about as sure as it is right, and a band has
#: about the probability it should have.
_EOS_OFF, _SURE_OFF, _MASS_OFF = 0.1, 0.03, 0.03


def conclude(one: Summary) -> str:
    """What is largest in one model, in a sentence or two."""
    parts = []
    if len(one.digits) > 1:
        digit = max(one.digits, key=lambda row: row.loss)
        parts.append(f"{digit.loss_share:.0%} of the loss is in digit {digit.digit}")
    band = max(one.bands, key=lambda row: row.loss_share)
    parts.append(f"{_called(band)} {band.share:.0%} of the text and {band.loss_share:.0%} of the loss")
    eos = _eos(one)
    if eos is not None:
        parts.append(f"EOS gets {eos:.2f} times its share of the probability{_ending(eos)}")
    most = max(one.bands, key=lambda row: row.mass_share - row.share)
    if most.mass_share - most.share >= _MASS_OFF:
        get = "gets" if most.band == EOS else "get"
        parts.append(
            f"{_called(most)} {most.share:.1%} of the text and {get} {most.mass_share:.1%} of the probability"
        )
    total = one.total
    gap = total.confidence - total.accuracy
    said = "; ".join(parts) + "."
    if abs(gap) >= _SURE_OFF:
        said += (
            f" The model is too {'sure' if gap > 0 else 'unsure'} of itself: its predictions have a "
            f"probability of {total.confidence:.1%} and {total.accuracy:.1%} of them are right."
        )
    return said


def compare(one: Summary, other: Summary) -> str:
    """Where the first model loses more, or less, than the second."""
    gap = one.total.loss - other.total.loss
    said = (
        f"The first model loses {abs(gap):.3f} nats a token {'more' if gap > 0 else 'less'} than the second"
    )
    if gap == 0:
        return "Both models lose as much."
    digits = [(mine.loss - theirs.loss, mine) for mine, theirs in zip(one.digits, other.digits, strict=True)]
    bands = [
        (sum(mine.digit_loss) - sum(theirs.digit_loss), mine)
        for mine, theirs in zip(one.bands, other.bands, strict=True)
    ]
    # The item that goes furthest the way the whole goes.
    digit_gap, digit = max(digits, key=lambda pair: pair[0] / gap)
    band_gap, band = max(bands, key=lambda pair: pair[0] / gap)
    if len(one.digits) > 1:
        said += f": {digit_gap:+.3f} in digit {digit.digit}"
    return f"{said}{',' if len(one.digits) > 1 else ':'} {band_gap:+.3f} at {_named(band)}."


def _named(band: BandRow) -> str:
    if band.band == EOS:
        return EOS
    return f"tokens {band.band} in training" if band.band == UNSEEN else f"tokens of rank {band.band}"


def _called(band: BandRow) -> str:
    return f"{_named(band)} {'is' if band.band == EOS else 'are'}"


def _eos(one: Summary) -> float | None:
    return next((row.mass_ratio for row in one.bands if row.band == EOS), None)


def _ending(ratio: float) -> str:
    if ratio > 1 + _EOS_OFF:
        return ", which ends sentences early"
    return ", which ends sentences late" if ratio < 1 - _EOS_OFF else ""
