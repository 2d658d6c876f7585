"""Tells how a training goes, from the log that it writes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from scripts.common.curves import logged


class Watch:
    """Reads what is new in a log of ``fairseq-train --log-format json`` whenever it is called.

    Prints a line for each validation; on a terminal there is a bar too.

    Args:
        log: the file, which need not be there yet; what it has already is passed over.
        name: of the training.
        updates: that it makes.
        console: where to print.
    """

    def __init__(self, log: Path, name: str, updates: int, console: Console) -> None:
        self.log, self.name, self.console = log, name, console
        self.read = log.stat().st_size if log.is_file() else 0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn(
                "{task.completed:.0f} of {task.total:.0f} updates, training perplexity {task.fields[ppl]}"
            ),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.task = self.bar.add_task(name, total=updates, ppl="-", visible=False)

    def __enter__(self) -> Watch:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def __call__(self) -> None:
        with self.log.open("rb") as file:
            file.seek(self.read)
            # What follows the last line feed is not whole yet.
            new, feed, _ = file.read().rpartition(b"\n")
        self.read += len(new) + len(feed)
        for line in new.decode("utf-8", errors="replace").splitlines():
            values = logged(line)
            if "valid_num_updates" in values:
                said = f"{values['valid_num_updates']} updates: validation perplexity {values['valid_ppl']}"
                self.console.print(f"{self.name}: {said}", highlight=False)
            elif "num_updates" in values:
                done = int(values["num_updates"])
                self.bar.update(self.task, completed=done, ppl=values["ppl"], visible=True)
