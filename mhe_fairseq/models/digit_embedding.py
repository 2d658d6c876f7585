"""The input embedding of a model whose output layer has rows for groups of tokens."""

from __future__ import annotations

from torch import Tensor, nn

from mhe_fairseq.heads.base import OutputHead


class DigitEmbedding(nn.Embedding):
    """An embedding to which a head adds rows (``OutputHead.input_rows``); without a head, any other.

    ``weight`` is the tokens' own part, which the head may be tied to.
    """

    _head: tuple[OutputHead] | None = None

    @classmethod
    def of(cls, embedding: nn.Module) -> nn.Module:
        """The same embedding, ready to follow a head; what is no plain ``nn.Embedding`` stays as it is."""
        if type(embedding) is not nn.Embedding:
            return embedding
        rows, dim = embedding.weight.shape
        return cls(rows, dim, padding_idx=embedding.padding_idx, _weight=embedding.weight.data)

    def follow(self, head: OutputHead) -> None:
        """Add the head's rows from now on."""
        # In a tuple: a module that is an attribute would be registered, and saved, a second time.
        self._head = (head,)

    def forward(self, input: Tensor) -> Tensor:
        """(...) long -> (..., d)."""
        embedded = super().forward(input)
        rows = None if self._head is None else self._head[0].input_rows(input)
        return embedded if rows is None else embedded + rows
