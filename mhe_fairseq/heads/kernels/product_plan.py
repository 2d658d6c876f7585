"""What of a product's loss does not change with the batch, and how its kernels are cut into programs."""

from __future__ import annotations

from typing import Any, NamedTuple

from mhe_fairseq.heads.kernels.dispatch import interpreting
from mhe_fairseq.heads.kernels.launch import Tile, power_of_2
from mhe_fairseq.heads.kernels.product_tables import Tables
from mhe_fairseq.heads.kernels.tiles import override

#: Drawn tokens that a program of ``combine`` has at hand at a time.
_DRAWN = 64

#: Numbers of all components and paths or drawn tokens that a program of ``combine`` has at hand, about.
_CELLS = 2048


class Plan(NamedTuple):
    """What does not change with the batch.

    Attributes:
        mixtures: K.
        vocab: V.
        drawn: S, drawn tokens of the smoothing term, for K > 1.
        smoothing: with the smoothing term.
        hits: also report which digits' best value is the target's, for K = 1.
    """

    tables: Tables
    mixtures: int
    vocab: int
    drawn: int
    smoothing: bool
    hits: bool

    @property
    def heads(self) -> int:
        """H."""
        return len(self.tables.lengths)

    @property
    def fields(self) -> int:
        """F, numbers of a token and component in ``parts``."""
        return self.tables.sets + self.heads * (2 if self.mixtures == 1 else 1)

    @property
    def shares(self) -> int:
        """SP, the padded S."""
        return max(16, power_of_2(self.drawn))

    def common(self) -> dict[str, Any]:
        """Constants of all kernels."""
        k = self.mixtures
        sizes = {"K": k, "H": self.heads, "M": self.tables.sets, "F": self.fields, "W": k * self.tables.width}
        return sizes

    def of_combine(self) -> dict[str, Any]:
        """Constants of the kernels that combine the parts."""
        return self.common() | {
            "P": self.tables.path_count,
            "S": self.drawn,
            "GATED": self.mixtures > 1,
            "FULL": self.tables.full,
            "SMOOTH": self.smoothing,
        }


def sums_tile() -> Tile:
    """Of ``digit_sums``: rows, columns of a step."""
    if interpreting():
        return Tile({"BM": 16, "BN": 16})
    return override.get("digit_sums") or Tile({"BM": 16, "BN": 128}, warps=4, stages=2)


def gradients_tile() -> Tile:
    """Of ``digit_gradients``: rows, columns. With 4 warps it would spill."""
    if interpreting():
        return Tile({"BM": 16, "BN": 16})
    return override.get("digit_gradients") or Tile({"BM": 32, "BN": 64}, warps=8, stages=2)


def combine_tile(plan: Plan) -> Tile:
    """Of ``combine`` and its backward: as many rows as leave a program's numbers in registers."""
    kp, pp = power_of_2(plan.mixtures), power_of_2(plan.tables.path_count)
    bs = 1
    if plan.mixtures > 1 and plan.smoothing:
        bs = min(_DRAWN, plan.shares, _CELLS // kp)
    rows = min(32, max(1, _CELLS // (kp * max(pp, bs))))
    rows = max(rows, 8) if interpreting() else rows
    small = rows * kp * max(pp, bs) <= 256
    return Tile({"BM": rows, "KP": kp, "PP": pp, "BS": bs}, warps=1 if small else 4, stages=2)
