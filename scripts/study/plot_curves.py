#!/usr/bin/env python3
"""Draw the curves of several trainings, from fairseq's logs, in one PNG.

    fairseq-train ... --log-format json --log-interval 25 >> softmax.log 2>&1
    python scripts/study/plot_curves.py softmax=softmax.log cascade=cascade.log --out curves.png

Thick lines are the perplexity of the validation set, thin lines that of the training batches: on the left
over updates, on the right over seconds. The first training is the reference: an arrow shows how much sooner
another one reaches its perplexity.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.common.curves import Curve, LogError, Point, read_log  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Of Okabe and Ito's colours, which colour-blind readers can tell apart; the reference is dark grey.
COLOURS = ("#4d4d4d", "#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK, PALE = "#222222", "#6f6f6f"
WIDTH, DPI = 12.0, 150
#: Inches that a row of the table takes, the panels, what is above them, and their axes below them.
ROW, PANELS, ABOVE, BELOW = 0.27, 4.3, 1.1, 0.75


class PlotError(Exception):
    """Bad input, said in one sentence."""


def draw(
    curves: list[Curve],
    title: str,
    subtitle: str = "",
    table: list[list[str]] | None = None,
    seconds: str = "seconds of training, validations included",
) -> Figure:
    """A figure of two panels and, under them, a table.

    Args:
        curves: the first is the reference.
        title: what is to be seen.
        subtitle: what was done, in one line or two.
        table: a header, and a row a curve that begins with its name.
        seconds: what the points' seconds are.

    Raises:
        PlotError: matplotlib is not installed, or the table is not for these curves.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise PlotError(
            "matplotlib is not installed; install it with: pip install -c constraints.txt -e '.[plot]'"
        ) from None
    if len(curves) > len(COLOURS):
        raise PlotError(f"at most {len(COLOURS)} curves can be told apart, got {len(curves)}")
    rows = table or []
    if rows and [row[0] for row in rows[1:]] != [curve.name for curve in curves]:
        raise PlotError("the table needs a header, and a row for each curve that begins with its name")

    under = ROW * len(rows) + 0.2 * bool(rows)
    height = ABOVE + PANELS + BELOW + under
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, facecolor="white")
    panels = figure.subplots(1, 2, sharey=True)
    figure.subplots_adjust(
        left=0.06, right=0.865, top=1 - ABOVE / height, bottom=(BELOW + under) / height, wspace=0.46
    )
    figure.text(0.02, 1 - 0.32 / height, title, fontsize=15, fontweight="bold", color=INK, va="center")
    figure.text(0.02, 1 - 0.53 / height, subtitle, fontsize=9.5, color=PALE, va="top", linespacing=1.4)
    _scale(panels[0], curves)
    _panel(panels[0], curves, "update", "updates")
    _panel(panels[1], curves, "seconds", seconds)
    panels[0].set_ylabel("perplexity", color=INK)
    # The second panel has room for its own numbers: no looking across.
    panels[1].tick_params(labelleft=True)
    if any(curve.training for curve in curves):
        _key(panels[0])
    _sooner(panels[1], curves)
    if rows:
        _table(figure, rows, (under - 0.05) / height, ROW / height)
    return figure


def _scale(axes: Axes, curves: list[Curve]) -> None:
    """A logarithmic axis from the lowest point of all to a little above the first validations: the first
    batches, as bad as the vocabulary is large, would squeeze everything else."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    points = [point.perplexity for curve in curves for point in (*curve.training, *curve.validation)]
    top = max(curve.validation[0].perplexity for curve in curves)
    axes.set_yscale("log")
    axes.set_ylim(0.9 * min(points), 1.35 * top)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.3g}" if value < 10 else f"{value:,.0f}")
    )
    axes.yaxis.set_minor_formatter(NullFormatter())


def _panel(axes: Axes, curves: list[Curve], key: str, label: str) -> None:
    """Every curve over ``key`` of its points, its name at its end."""
    from matplotlib.ticker import MaxNLocator

    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color("#b0b0b0")
    axes.tick_params(which="both", color="#b0b0b0", labelcolor=INK, labelsize=9)
    axes.grid(axis="y", color="#ececec", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel(label, color=INK)

    def drawn(points: list[Point]) -> tuple[list[float], list[float]]:
        return [getattr(point, key) for point in points], [point.perplexity for point in points]

    for curve, colour in zip(curves, COLOURS, strict=False):
        if curve.training:
            axes.plot(*drawn(curve.training), color=colour, linewidth=0.9, alpha=0.55)
        # Not clipped: half of the last marker would be.
        axes.plot(
            *drawn(curve.validation), color=colour, linewidth=2.4, marker="o", markersize=4, clip_on=False
        )
    axes.set_xlim(0, max(getattr((curve.training or curve.validation)[-1], key) for curve in curves))
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    _name(axes, curves, key)


def _name(axes: Axes, curves: list[Curve], key: str) -> None:
    """The name of each curve and its last perplexity, right of its end and apart from one another."""
    from matplotlib.patheffects import withStroke

    ends = sorted(zip(curves, COLOURS, strict=False), key=lambda pair: pair[0].validation[-1].perplexity)
    lowest = -1e9
    for curve, colour in ends:
        end = curve.validation[-1]
        x, y = axes.transData.transform((getattr(end, key), end.perplexity))
        # In pixels: two labels need the height of their text between them, wherever the lines end.
        placed = max(y, lowest + 0.19 * DPI)
        lowest = placed
        text = axes.annotate(
            f"{curve.name} {_short(end.perplexity)}",
            xy=(x + 0.08 * DPI, placed),
            xycoords="figure pixels",
            color=colour,
            fontsize=11,
            fontweight="bold",
            va="center",
            annotation_clip=False,
        )
        text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _key(axes: Axes) -> None:
    """Which line is thick and which thin."""
    axes.plot([], [], color=INK, linewidth=2.4, marker="o", markersize=4, label="validation set")
    axes.plot([], [], color=INK, linewidth=0.9, alpha=0.7, label="training batches")
    axes.legend(loc="upper right", frameon=False, fontsize=9, labelcolor=INK)


def _sooner(axes: Axes, curves: list[Curve]) -> None:
    """An arrow, at the reference's best perplexity, from its time to that of a curve that was there before.

    Only for the soonest one: more arrows would lie on top of each other.
    """
    from matplotlib.patheffects import withStroke

    reference = curves[0].best
    times = [
        (there.seconds, i)
        for i in range(1, len(curves))
        if (there := curves[i].reaches(reference.perplexity))
    ]
    if not times or min(times)[0] >= reference.seconds:
        return
    seconds, number = min(times)
    axes.annotate(
        "",
        xy=(seconds, reference.perplexity),
        xytext=(reference.seconds, reference.perplexity),
        arrowprops={
            "arrowstyle": "-|>",
            "color": COLOURS[number],
            "linewidth": 1.2,
            "linestyle": (0, (4, 2)),
        },
    )
    text = axes.annotate(
        f"as good, {reference.seconds / seconds:.1f}x sooner",
        xy=(seconds, reference.perplexity),
        # Above the arrow and right of its tip, where the reference is far above.
        xytext=(14, 5),
        textcoords="offset points",
        color=COLOURS[number],
        fontsize=9.5,
    )
    text.set_path_effects([withStroke(linewidth=3, foreground="white")])


def _table(figure: Figure, rows: list[list[str]], top: float, step: float) -> None:
    """Rows of text under the panels: names to the left, numbers to the right of their columns."""
    # A column is as wide as its longest text, and all together fill the width.
    widths = [max(len(row[column]) for row in rows) + 3 for column in range(len(rows[0]))]
    unit = min(0.93 / sum(widths), 0.0095)
    for number, row in enumerate(rows):
        x = 0.02
        for column, (text, width) in enumerate(zip(row, widths, strict=True)):
            colour = PALE if number == 0 else COLOURS[number - 1] if column == 0 else INK
            figure.text(
                x if column == 0 else x + (width - 1) * unit,
                top - number * step,
                text,
                ha="left" if column == 0 else "right",
                va="top",
                fontsize=9 if number == 0 else 10,
                fontweight="bold" if number and column == 0 else "normal",
                color=colour,
            )
            x += width * unit


def _short(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="NAME=LOG", help="a training's name and its log")
    parser.add_argument("--out", type=Path, default=Path("curves.png"), help="default: %(default)s")
    parser.add_argument("--title", default="Perplexity of the validation set", help="default: %(default)s")
    parser.add_argument("--subtitle", default="")
    args = parser.parse_args(argv)
    try:
        pairs = [text.partition("=") for text in args.logs]
        names = [name for name, _, _ in pairs]
        if not all(name and log for name, _, log in pairs) or len(set(names)) < len(names):
            raise PlotError(f"expected NAME=LOG, each name once; got {' '.join(args.logs)}")
        curves = [read_log(Path(log), name) for name, _, log in pairs]
        figure = draw(curves, args.title, args.subtitle)
        args.out.parent.mkdir(parents=True, exist_ok=True)
        # ValueError: no format is called so.
        figure.savefig(args.out)
    except (PlotError, LogError, OSError, ValueError) as error:
        print(f"plot_curves.py: error: {error}", file=sys.stderr)
        return 1
    print(f"{args.out}: {len(curves)} trainings")
    return 0


if __name__ == "__main__":
    sys.exit(main())
