"""From which update on a training has the exact loss."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class ExactEnd:
    """The last updates of a training, a share of them or all after a number.

    An update belongs to them if it ends past their beginning: of a share above 0 it is one update at least.

    Attributes:
        share: of the updates or epochs that the training is to have, 0 to 1; not read with ``after``.
        after: this number of updates.
        is_asked: somebody gave it, so a training that has no known end cannot do it.
    """

    share: float = 0.0
    after: int | None = None
    is_asked: bool = True

    @property
    def needs_an_end(self) -> bool:
        """Whether a training's end is to be known."""
        return self.after is None and self.share > 0

    def includes(
        self, updates: int, epochs: Fraction | None = None, max_update: int = 0, max_epoch: int = 0
    ) -> bool:
        """Whether an update has the exact loss.

        Args:
            updates: done before it.
            epochs: done after it; None: not known.
            max_update, max_epoch: where the training ends, whichever is first; 0: it does not end there.
        """
        if self.after is not None:
            return updates >= self.after
        if not self.share:
            return False
        # As it was written: 0.1 in binary is a little more, and so would a tenth of ten updates be.
        before = 1 - Fraction(str(self.share))
        by_updates = max_update > 0 and updates + 1 > max_update * before
        by_epochs = max_epoch > 0 and epochs is not None and epochs > max_epoch * before
        return by_updates or by_epochs

    def describe(self, max_update: int = 0, max_epoch: int = 0) -> str:
        """In a few words, for logs."""
        if self.after is not None:
            return f"those after the first {self.after:,}"
        ends = [
            f"{number:,} {what}"
            for number, what in ((max_update, "updates"), (max_epoch, "epochs"))
            if number
        ]
        return f"the last {100 * self.share:g}% of {' or '.join(ends)}"
