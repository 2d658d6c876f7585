"""Scales an output layer's weights in a checkpoint, so that it is as sure of the next token as a trained one.

    python -m scripts.gpu.sharpened CHECKPOINT ...

An untrained layer is nearly flat: its best tokens are found in no way that tells of a trained one's.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from fairseq import checkpoint_utils
from torch import Tensor, nn

import mhe_fairseq  # noqa: F401  (its models, and what a checkpoint may hold)
from mhe_fairseq.bench.decode import sharpen

#: Rows of features that the entropy is taken of.
_ROWS = 64


class _Projection(nn.Module):
    """fairseq's own output layer, with what ``sharpen`` asks for."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer

    def log_probs(self, features: Tensor) -> Tensor:
        logits: Tensor = self.layer(features)
        return logits.log_softmax(dim=-1)


@torch.no_grad()
def sharpen_checkpoint(path: str) -> None:
    """Rewrite it. Its model is a translation model whose output layer is not tied.

    Raises:
        ValueError: it is tied: scaling would change the rest of the model.
    """
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([path])
    model: Any = models[0].eval()
    decoder = model.decoder
    head = getattr(decoder, "head", None)
    layer = _Projection(decoder.output_projection) if head is None else head
    # A tied head reads the embedding's rows, which are no parameters of its own.
    if getattr(head, "is_tied", False) or any(p is decoder.embed_tokens.weight for p in layer.parameters()):
        raise ValueError(f"the output layer of {path} is tied to the embeddings")
    sharpen(layer, _features(model, task))
    state = torch.load(path, map_location="cpu", weights_only=True)
    state["model"] = model.state_dict()
    torch.save(state, path)


def _features(model: Any, task: Any) -> Tensor:
    """Of made-up sentences. Shape: (64, d)."""
    words = torch.arange(4, 4 + _ROWS) % len(task.source_dictionary)
    source = words.clamp(min=4).view(8, -1)
    lengths = torch.full((len(source),), source.size(1))
    features, _ = model(source, lengths, source, features_only=True)
    flat: Tensor = features.reshape(_ROWS, -1).float()
    return flat


if __name__ == "__main__":
    for name in sys.argv[1:]:
        sharpen_checkpoint(name)
