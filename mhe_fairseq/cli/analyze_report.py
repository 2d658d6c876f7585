"""What `mhe analyze` found, for people (tables) and for machines (JSON)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mhe_fairseq.analysis.pairs import PairSummary
from mhe_fairseq.analysis.summary import Summary
from mhe_fairseq.version import __version__


@dataclass(frozen=True)
class Kind:
    """How numbers of a column are written, and differences of them."""

    value: Callable[[float], str]
    difference: Callable[[float], str]


COUNT = Kind("{:,.0f}".format, "{:+,.0f}".format)
NATS = Kind("{:.3f}".format, "{:+.3f}".format)
RATIO = Kind("{:.2f}".format, "{:+.2f}".format)
#: Differences of shares are in percentage points.
SHARE = Kind("{:.1%}".format, lambda value: f"{100 * value:+.1f} pt")

#: An item of a table: its labels, and its numbers for each model.
Row = tuple[Sequence[str], Sequence[Sequence[float | None]]]


@dataclass(frozen=True)
class Report:
    """Everything found.

    Attributes:
        names: of one model or two, short.
        summaries: of each; the second one's confused groups are the first one's.
        symbols: of the V tokens.
        sentences: the conclusion.
        about: what was analysed, for the header and the JSON.
        pairs: of each model, its pairs of languages; empty where there is only one.
    """

    names: list[str]
    summaries: list[Summary]
    symbols: list[str]
    sentences: list[str]
    about: dict[str, Any]
    pairs: list[list[PairSummary]] = field(default_factory=list)

    def show(self, console: Console) -> None:
        """Print the conclusion and the tables."""
        for sentence in self.sentences:
            console.print(Text(sentence, style="bold"))
        for line in self._header():
            console.print(Text(line))
        tables = [self._totals(), self._digits(), self._bands(), self._confused()]
        if self.summaries[0].copied:
            tables.insert(3, self._copied())
        if any(self.pairs):
            tables.insert(1, self._pairs())
        for table in tables:
            console.print(table)
        console.print(Text(_LEGEND))

    def as_dict(self) -> dict[str, Any]:
        """For JSON, which knows no infinity: None in its place."""
        models: list[dict[str, Any]] = []
        for name, summary in zip(self.names, self.summaries, strict=True):
            numbers = asdict(summary)
            numbers["calibration"] = [each._asdict() for each in summary.calibration]
            for pair in numbers["confused"]:
                pair["examples"] = [
                    {"gold": self.symbols[gold], "predicted": self.symbols[predicted], "count": count}
                    for gold, predicted, count in pair["examples"]
                ]
            own = self.pairs[len(models)] if self.pairs else []
            models.append({"name": name, **numbers, "pairs": [asdict(pair) for pair in own]})
        found: dict[str, Any] = _finite(
            {
                "command": "analyze",
                "version": __version__,
                "conclusion": self.sentences,
                **self.about,
                "models": models,
            }
        )
        return found

    # ---- tables

    def _header(self) -> list[str]:
        about = self.about
        lines = [
            f"{name}: {checkpoint}, {model}"
            for name, checkpoint, model in zip(self.names, about["checkpoints"], about["models"], strict=True)
        ]
        shape = " x ".join(f"{length:,}" for length in about["codebook"]["lengths"])
        tokens = f"{self.summaries[0].total.tokens:,} target tokens"
        tokens = tokens if about["limit"] is None else f"a sample of {tokens}"
        lines.append(f"data: {about['data']}, split {about['subset']}, {tokens}")
        if about["left_out"]:
            lines.append(f"left out: {about['left_out']:,} sentences that are too long for the model")
        lines.append(f"digits: {shape}, {about['codebook']['source']}")
        return lines

    def _totals(self) -> Table:
        columns = {
            "nats/token": NATS,
            "base 2": NATS,
            "perplexity": RATIO,
            "accuracy": SHARE,
            "confidence": SHARE,
            "calibration error": SHARE,
        }
        totals = [each.total for each in self.summaries]
        numbers = [
            (t.loss, t.bits, t.perplexity, t.accuracy, t.confidence, t.calibration_error) for t in totals
        ]
        return self._table("All target tokens", (), columns, [((), numbers)])

    def _pairs(self) -> Table:
        columns = {
            "nats/token": NATS,
            "accuracy": SHARE,
            "in the language": SHARE,
            "EOS over its share": RATIO,
        }
        rows: list[Row] = []
        for each in zip(*self.pairs, strict=True):
            numbers = [(pair.loss, pair.correct, pair.in_language, pair.eos) for pair in each]
            rows.append(((each[0].pair, f"{each[0].tokens:,}"), numbers))
        title = "Pairs; in the language: probability of tokens that its training text has"
        return self._table(title, ("pair", "tokens"), columns, rows)

    def _digits(self) -> Table:
        columns = {"nats/token": NATS, "of the loss": SHARE, "accuracy": SHARE}
        rows: list[Row] = []
        for each in zip(*(summary.digits for summary in self.summaries), strict=True):
            numbers = [(row.loss, row.loss_share, row.accuracy) for row in each]
            rows.append(((str(each[0].digit), f"{each[0].length:,}"), numbers))
        return self._table("Digits: -log p(digit | digits before it)", ("digit", "values"), columns, rows)

    def _bands(self) -> Table:
        columns = {
            "nats/token": NATS,
            "of the loss": SHARE,
            "recall": SHARE,
            "precision": SHARE,
            "probability": SHARE,
            "over its share": RATIO,
        }
        rows: list[Row] = []
        for each in zip(*(summary.bands for summary in self.summaries), strict=True):
            numbers = [
                (row.loss, row.loss_share, row.recall, row.precision, row.mass_share, row.mass_ratio)
                for row in each
            ]
            first = each[0]
            rows.append(((first.band, f"{first.tokens:,}", f"{first.share:.1%}"), numbers))
        labels = ("rank", "tokens", "of the text")
        return self._table("Target tokens by their rank in the training text", labels, columns, rows)

    def _copied(self) -> Table:
        columns = {
            "nats/token": NATS,
            "of the loss": SHARE,
            "recall": SHARE,
            "others: nats/token": NATS,
            "recall ": SHARE,
        }
        rows: list[Row] = []
        for each in zip(*(summary.copied for summary in self.summaries), strict=True):
            numbers = [
                (row.loss, row.loss_share, row.recall, row.other_loss, row.other_recall) for row in each
            ]
            rows.append(((each[0].band, f"{each[0].tokens:,}", f"{each[0].other_tokens:,}"), numbers))
        labels = ("rank", "in the source", "others")
        return self._table("Target tokens that stand in the source sentence too", labels, columns, rows)

    def _confused(self) -> Table:
        columns = {"count": COUNT, "of the loss": SHARE, "nats/token": NATS}
        rows: list[Row] = []
        for each in zip(*(summary.confused for summary in self.summaries), strict=True):
            numbers = []
            for pair, summary in zip(each, self.summaries, strict=True):
                lost = summary.total.loss * summary.total.tokens
                mean = pair.loss / pair.count if pair.count else None
                numbers.append((pair.count, pair.loss / lost if lost else None, mean))
            examples = ", ".join(
                f"{self.symbols[gold]} -> {self.symbols[predicted]}" + f" ({count}x)" * (count > 1)
                for gold, predicted, count in each[0].examples
            )
            rows.append(((f"{each[0].gold} -> {each[0].predicted}", examples), numbers))
        title = "Groups most confused: first digit of the target -> of the predicted token"
        return self._table(title, ("groups", "examples"), columns, rows)

    def _table(
        self, title: str, labels: Sequence[str], columns: dict[str, Kind], rows: Sequence[Row]
    ) -> Table:
        """A row an item; of two models a row for each, and their difference."""
        table = Table(title=Text(title), title_justify="left")
        for label in labels:
            words = label in ("examples", "rank", "groups", "digit")
            table.add_column(label, justify="left" if words else "right", overflow="fold")
        several = len(self.names) > 1
        if several:
            table.add_column("model")
        for column in columns:
            table.add_column(column, justify="right")
        for texts, numbers in rows:
            lines = [
                [_written(value, kind.value) for value, kind in zip(each, columns.values(), strict=True)]
                for each in numbers
            ]
            if several:
                pairs = zip(*numbers, columns.values(), strict=True)
                lines.append([_difference(one, other, kind) for one, other, kind in pairs])
            names = [*self.names, "difference"] if several else [""]
            for number, (name, line) in enumerate(zip(names, lines, strict=True)):
                head = texts if number == 0 else [""] * len(texts)
                # Text, not markup: a token may look like a tag, "[b]".
                cells = [*head, *([name] if several else []), *line]
                table.add_row(
                    *(Text(cell) for cell in cells), end_section=several and number == len(lines) - 1
                )
        return table


_LEGEND = (
    "accuracy: the most probable token is the target (a digit's: given the target's digits before it). "
    "confidence: mean probability of the most probable token. calibration error: how far confidence and "
    "accuracy are apart among predictions of like probability. recall: share of the targets that were "
    "predicted; precision: share of the predictions that were right. probability: what the band gets, mean "
    "of all positions; above 1 over its share of the text, the model expects it too often: with too much EOS "
    "sentences end early."
)


def _written(value: float | None, form: Callable[[float], str]) -> str:
    return "-" if value is None else form(value)


def _difference(one: float | None, other: float | None, kind: Kind) -> str:
    return "-" if one is None or other is None else kind.difference(one - other)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
