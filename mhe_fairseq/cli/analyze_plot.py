"""What `mhe analyze` found, in one picture."""

from __future__ import annotations

import io
import textwrap
from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from mhe_fairseq.cli.analyze_report import Report

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Of Okabe and Ito's colours, which colour-blind readers can tell apart.
DIGITS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
MODELS = ("#D55E00", "#4d4d4d")
#: The second model's bars are those of the first one, hatched.
HATCHES = ("", "////")
INK, PALE, GRID = "#222222", "#6f6f6f", "#ececec"
WIDTH, HEIGHT, DPI = 15.0, 5.6, 130

#: Ratios beyond are drawn as if they were it, with their number: a few rare tokens may have any.
_FURTHEST = 4.0


def draw(report: Report) -> bytes:
    """A PNG of three panels: loss by band and digit, calibration, and the share of probability by band."""
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    panels = figure.subplots(1, 3, width_ratios=(1.45, 0.9, 1.1))
    figure.subplots_adjust(left=0.045, right=0.985, top=0.75, bottom=0.17, wspace=0.24)
    total = " and ".join(
        f"{summary.total.loss:.3f} ({name})" if len(report.names) > 1 else f"{summary.total.loss:.3f}"
        for name, summary in zip(report.names, report.summaries, strict=True)
    )
    title = f"Where the loss is: {total} nats a token, {report.summaries[0].total.tokens:,} target tokens"
    figure.text(0.012, 0.95, title, fontsize=15, fontweight="bold", color=INK, va="center")
    said = "\n".join(line for each in report.sentences for line in textwrap.wrap(each, 190))
    figure.text(0.012, 0.915, said, fontsize=9.5, color=PALE, va="top", linespacing=1.4)
    _loss(panels[0], report)
    _calibration(panels[1], report)
    _mass(panels[2], report)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _loss(axes: Axes, report: Report) -> None:
    """Bars that add up to the loss of a token."""
    _plain(axes, "nats a token of the text, by rank of the target in training")
    names = [_label(row.band) for row in report.summaries[0].bands]
    width = 0.8 / len(report.summaries)
    for number, (name, summary) in enumerate(zip(report.names, report.summaries, strict=True)):
        places = [i + (number - (len(report.summaries) - 1) / 2) * width for i in range(len(names))]
        bottoms = [0.0] * len(names)
        for h, digit in enumerate(summary.digits):
            heights = [row.digit_loss[h] for row in summary.bands]
            which = f"{name}, " if len(report.names) > 1 else ""
            axes.bar(
                places,
                heights,
                0.94 * width,
                bottom=bottoms,
                color=DIGITS[h % len(DIGITS)],
                edgecolor="white",
                linewidth=0.5,
                hatch=HATCHES[number],
                label=f"{which}digit {digit.digit}: {digit.loss:.2f}",
            )
            bottoms = [low + high for low, high in zip(bottoms, heights, strict=True)]
        for place, top, row in zip(places, bottoms, summary.bands, strict=True):
            text = f"{row.loss_share:.0%}"
            axes.annotate(
                text,
                (place, top),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=INK,
            )
    axes.set_xticks(range(len(names)), names, fontsize=8)
    shares = [f"{row.share:.0%} of text" for row in report.summaries[0].bands]
    for place, text in enumerate(shares):
        axes.annotate(
            text,
            (place, 0),
            (0, -36),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            fontsize=7.5,
            color=PALE,
        )
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, labelcolor=INK)


def _calibration(axes: Axes, report: Report) -> None:
    """Accuracy over probability: on the diagonal a model is as often right as it says."""
    _plain(axes, "share of predictions that are right")
    axes.plot([0, 1], [0, 1], color="#b0b0b0", linewidth=1, linestyle=(0, (4, 3)))
    for name, summary, colour in zip(report.names, report.summaries, MODELS, strict=False):
        bins = [each for each in summary.calibration if each.size]
        most = max(each.size for each in bins)
        places = [each.confidence for each in bins], [each.accuracy for each in bins]
        label = f"{name}: error {summary.total.calibration_error:.1%}"
        axes.plot(*places, color=colour, linewidth=1.8, label=label)
        # The area of a dot tells how many predictions it stands for.
        axes.scatter(*places, [8 + 90 * each.size / most for each in bins], color=colour, alpha=0.8)
    axes.set_xlim(0, 1.02)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("probability of the predicted token", color=INK, fontsize=9)
    axes.text(0.97, 0.05, "below the line: too sure", ha="right", fontsize=8.5, color=PALE)
    axes.legend(loc="upper left", frameon=False, fontsize=9, labelcolor=INK)


def _mass(axes: Axes, report: Report) -> None:
    """Probability of a band over its share of the targets, as a distance from one."""
    _plain(axes, "probability of a band, over its share of the text")
    axes.grid(axis="x", color=GRID, linewidth=0.8)
    axes.grid(visible=False, axis="y")
    bands = report.summaries[0].bands
    height = 0.7 / len(report.summaries)
    for number, (summary, colour) in enumerate(zip(report.summaries, MODELS, strict=False)):
        for i, row in enumerate(summary.bands):
            place = i + (number - (len(report.summaries) - 1) / 2) * height
            if row.mass_ratio is None:
                continue
            shown = min(max(row.mass_ratio, 1 / _FURTHEST), _FURTHEST)
            axes.barh(place, shown - 1, 0.94 * height, left=1, color=colour)
            right = row.mass_ratio >= 1
            axes.annotate(
                f"{row.mass_ratio:.2f}",
                (shown, place),
                (3 if right else -3, 0),
                textcoords="offset points",
                ha="left" if right else "right",
                va="center",
                fontsize=8,
                color=INK,
            )
    axes.axvline(1, color=INK, linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xlim(0.8 / _FURTHEST, 1.5 * _FURTHEST)
    ticks = [0.25, 0.5, 1, 2, 4]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_yticks(range(len(bands)), [row.band for row in bands])
    # Room for the key above the first band.
    axes.set_ylim(len(bands) - 0.4, -0.6 - 0.8 * (len(report.names) > 1))
    axes.set_xlabel("less than its share  |  more than its share", color=INK, fontsize=9)
    if len(report.names) > 1:
        for name, colour in zip(report.names, MODELS, strict=False):
            axes.barh(0, 0, color=colour, label=name)
        axes.legend(loc="upper right", ncols=2, frameon=False, fontsize=9, labelcolor=INK)


def _plain(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b0b0b0")
    axes.tick_params(which="both", color="#b0b0b0", labelcolor=INK, labelsize=8.5)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)


def _label(band: str) -> str:
    """Two lines of a long name."""
    return band.replace(" ", "\n")
