"""Rows of output weights that may be a head's own or the model's input embedding."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError


class MaybeTied(nn.Module):
    """Rows that are this module's, or those of an ``nn.Embedding`` that the model owns.

    A tied embedding is held by reference and not registered: the model saves, moves and casts it once,
    and the state dict has one copy.
    """

    def __init__(self, tied: nn.Embedding | None) -> None:
        super().__init__()
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._tied = None if tied is None else (tied,)

    @abstractmethod
    def own_weight(self) -> Tensor:
        """The rows, when they are this module's."""

    @property
    def weight(self) -> Tensor:
        """The rows in use."""
        return self.own_weight() if self._tied is None else self._tied[0].weight

    @property
    def is_tied(self) -> bool:
        """The rows are an embedding's."""
        return self._tied is not None


def check_embedding(tied: nn.Embedding, rows: int, dim: int) -> None:
    """Raises:
    MHEError: ``tied`` is of another shape than (rows, dim).
    """
    if tuple(tied.weight.shape) != (rows, dim):
        raise MHEError(
            f"an output layer of {rows} tokens x {dim} dimensions cannot be tied to an embedding "
            f"of {tuple(tied.weight.shape)}; they must be equal"
        )


class OutputTable(MaybeTied):
    """A V x d table: one row a token.

    Args:
        rows: V.
        dim: d.
        tied: the embedding to read from, with a (V, d) weight; None makes an own weight with the
            initialisation of fairseq's output projection, normal with std d**-0.5.

    Raises:
        MHEError: ``tied`` has another shape.
    """

    def __init__(self, rows: int, dim: int, tied: nn.Embedding | None = None) -> None:
        super().__init__(tied)
        if tied is not None:
            check_embedding(tied, rows, dim)
            return
        # nn.Linear, not a bare parameter: it draws from the random generator what fairseq's output
        # projection draws, so the same seed gives the same model.
        self.linear = nn.Linear(dim, rows, bias=False)
        nn.init.normal_(self.linear.weight, mean=0.0, std=dim**-0.5)

    def own_weight(self) -> Tensor:
        return self.linear.weight

    def extra_repr(self) -> str:
        shape = "x".join(map(str, torch.Size(self.weight.shape)))
        return f"{shape}, {'tied' if self.is_tied else 'own'}"
