"""Whether a batch has padding, asked once and before the layers.

fairseq's encoder asks the device in front of each of its layers, and the decoder once more behind the
encoder: every time the host waits for the layers before. The answer stands in the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from fairseq.models.transformer import TransformerEncoder, TransformerEncoderBase
from torch import Tensor


class Padded:
    """Whether a batch of tokens has padding.

    Args:
        tokens: (B, T) long.
        answer: known already.
    """

    def __init__(self, tokens: Tensor, answer: bool) -> None:
        self._tokens, self._answer = tokens, answer

    def of(self, tokens: Tensor) -> bool | None:
        """The answer, None of other tokens."""
        return self._answer if tokens is self._tokens else None


def ask(*batches: tuple[Tensor, int]) -> list[Padded]:
    """Of several batches, each with its padding's number, by one wait."""
    found = torch.stack([tokens.eq(padding).any() for tokens, padding in batches]).tolist()
    return [Padded(tokens, answer) for (tokens, _), answer in zip(batches, found, strict=True)]


class AskedOnce:
    """Before an encoder of fairseq's: its ``forward_scriptable``, asking once or told by ``padded``."""

    padded: Padded | None = None

    embed_tokens: Any
    forward_embedding: Any
    layer_norm: Any
    layers: Any
    padding_idx: int

    def forward_scriptable(
        self,
        src_tokens: Tensor,
        src_lengths: Tensor | None = None,
        return_all_hiddens: bool = False,
        token_embeddings: Tensor | None = None,
    ) -> dict[str, list[Any]]:
        """As fairseq's, to the bit."""
        mask = src_tokens.eq(self.padding_idx)
        answer = None if self.padded is None else self.padded.of(src_tokens)
        is_padded = bool(mask.any()) if answer is None else answer

        x, embedding = self.forward_embedding(src_tokens, token_embeddings)
        if is_padded:
            x = x * (1 - mask.unsqueeze(-1).type_as(x))
        x = x.transpose(0, 1)

        states, fc_results = [x] if return_all_hiddens else [], []
        for layer in self.layers:
            given = layer(x, encoder_padding_mask=mask if is_padded else None)
            x, fc_result = given if isinstance(given, tuple) and len(given) == 2 else (given, None)
            if return_all_hiddens:
                states.append(x)
                fc_results.append(fc_result)
        if self.layer_norm is not None:
            x = self.layer_norm(x)

        lengths = src_tokens.ne(self.padding_idx).sum(dim=1, dtype=torch.int32).reshape(-1, 1).contiguous()
        return {
            "encoder_out": [x],
            "encoder_padding_mask": [mask],
            "encoder_embedding": [embedding],
            "encoder_states": states,
            "fc_results": fc_results,
            "src_tokens": [],
            "src_lengths": [lengths],
        }


class MHETransformerEncoder(AskedOnce, TransformerEncoderBase):
    """Of a translation model."""


class MHESentenceEncoder(AskedOnce, TransformerEncoder):
    """Of a masked language model."""
