"""Margins of face recognition: scores are scaled cosines, and the target's is made harder in training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.base import wide

KINDS = ("arcface", "cosface")

#: Margins of the papers: radians, and a difference of cosines.
DEFAULTS = {"arcface": 0.5, "cosface": 0.35}

#: Vectors shorter than this have no direction.
_SHORTEST = 1e-12

#: The least squared sine that is divided by.
_LEAST = 1e-6


@dataclass(frozen=True)
class Margin:
    """How a head scores by angle: a class has the score ``scale`` x cos(angle between features and its row).

    In training the target's score is made harder. With ``margin`` m it is, for angle t::

        arcface: scale x cos(t + m) where t + m <= pi, and scale x (cos t - m sin m) beyond
        cosface: scale x (cos t - m)

    The score of arcface jumps at t = pi - m, as in its authors' code. Features or a row of zeros have cosine
    0 with everything, and no gradient.

    Args:
        kind: "arcface" (arXiv 1801.07698) or "cosface" (arXiv 1801.09414).
        scale: s, larger than 0.
        margin: m, 0 or larger; of arcface at most pi. None: 0.5 radians for arcface, 0.35 for cosface.

    Raises:
        MHEError: another kind, a scale or a margin outside these.
    """

    kind: str = "arcface"
    scale: float = 64.0
    margin: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise MHEError(f"a margin's kind is one of {', '.join(KINDS)}; got {self.kind!r}")
        if not 0 < self.scale < math.inf:
            raise MHEError(f"a margin's scale is a number above 0, such as 64; got {self.scale}")
        most = math.pi if self.kind == "arcface" else math.inf
        if not 0 <= self.m <= most or self.m == math.inf:
            end = " to pi, an angle," if self.kind == "arcface" else " or more"
            raise MHEError(f"the margin of {self.kind} is 0{end} such as {DEFAULTS[self.kind]}; got {self.m}")

    @property
    def m(self) -> float:
        """The margin."""
        return DEFAULTS[self.kind] if self.margin is None else self.margin

    def features(self, x: Tensor) -> Tensor:
        """Features whose products with rows of length 1 are the scores. Shape: (N, d), same dtype."""
        return (unit(wide(x)) * self.scale).to(x.dtype)

    def target(self, score: Tensor) -> Tensor:
        """The target's score in training. Differentiable. Any shape, fp32 or float64."""
        if self.kind == "cosface":
            return score - self.scale * self.m
        sin, is_near, _ = self._angle(score)
        turned = score * math.cos(self.m) - self.scale * math.sin(self.m) * sin
        return torch.where(is_near, turned, score - self.scale * self.m * math.sin(self.m))

    def bend(self, score: Tensor) -> Bent:
        """``target`` and its derivative, for a backward pass written by hand. Not differentiable."""
        score = score.detach()
        if self.kind == "cosface":
            return Bent(self.target(score), torch.ones_like(score))
        sin, is_near, is_floored = self._angle(score)
        turn = torch.where(is_floored, 0.0, math.sin(self.m) / self.scale * score / sin)
        return Bent(self.target(score), torch.where(is_near, math.cos(self.m) + turn, 1.0))

    def _angle(self, score: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sine of the angle; whether it is at most pi - m; whether the sine is so small that it is taken for
        a constant."""
        cos = score / self.scale
        square = 1 - cos * cos
        return square.clamp(min=_LEAST).sqrt(), cos >= math.cos(math.pi - self.m), square < _LEAST


class Bent(NamedTuple):
    """Scores of targets.

    Attributes:
        value: with the margin.
        slope: derivative by the score without it.
    """

    value: Tensor
    slope: Tensor


def unit(rows: Tensor) -> Tensor:
    """Rows of length 1, of the same directions; zeros where there is none. Shape: (..., d)."""
    return rows * inverse_lengths(rows).unsqueeze(-1)


def inverse_lengths(rows: Tensor) -> Tensor:
    """One over the length of each row, 0 where it has none: ``unit(rows)`` are the rows times these.

    Shape: (..., d) -> (...), fp32 or float64.
    """
    length = torch.linalg.vector_norm(rows, dim=-1, dtype=wide(rows[:0]).dtype)
    return length.masked_fill(length < _SHORTEST, torch.inf).reciprocal()


@torch.no_grad()
def along_spheres_(gradient: Tensor, rows: Tensor, inverse: Tensor) -> None:
    """Take from a gradient, in place, the part along the rows: a row's length changes no score.

    Args:
        gradient: (V, d), of the rows as if ``inverse`` were constant.
        rows: (V, d).
        inverse: (V,), their ``inverse_lengths``.
    """
    along = (wide(gradient) * wide(rows)).sum(dim=-1) * inverse * inverse
    gradient.addcmul_(rows, along.unsqueeze(-1).to(rows.dtype), value=-1)
