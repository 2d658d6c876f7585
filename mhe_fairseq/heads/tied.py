"""A V x d table that may be a head's own or the model's input embedding."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mhe_fairseq.errors import MHEError


class OutputTable(nn.Module):
    """Rows of output weights, (V, d): owned, or read from an ``nn.Embedding`` that the model owns.

    A tied embedding is held by reference and not registered: the model saves, moves and casts it once,
    and the state dict has one copy.

    Args:
        rows: V.
        dim: d.
        tied: the embedding to read from, with a (V, d) weight; None makes an own weight with the
            initialisation of fairseq's output projection, normal with std d**-0.5.

    Raises:
        MHEError: ``tied`` has another shape.
    """

    def __init__(self, rows: int, dim: int, tied: nn.Embedding | None = None) -> None:
        super().__init__()
        self._tied = None if tied is None else (tied,)
        if tied is not None:
            if tuple(tied.weight.shape) != (rows, dim):
                raise MHEError(
                    f"an output layer of {rows} tokens x {dim} dimensions cannot be tied to an embedding "
                    f"of {tuple(tied.weight.shape)}; they must be equal"
                )
            return
        # nn.Linear, not a bare parameter: it draws from the random generator what fairseq's output
        # projection draws, so the same seed gives the same model.
        self.linear = nn.Linear(dim, rows, bias=False)
        nn.init.normal_(self.linear.weight, mean=0.0, std=dim**-0.5)

    @property
    def weight(self) -> Tensor:
        """(V, d)."""
        return self.linear.weight if self._tied is None else self._tied[0].weight

    @property
    def is_tied(self) -> bool:
        return self._tied is not None

    def extra_repr(self) -> str:
        shape = "x".join(map(str, torch.Size(self.weight.shape)))
        return f"{shape}, {'tied' if self.is_tied else 'own'}"
