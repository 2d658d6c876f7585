"""The token embedding of a fairseq checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from mhe_fairseq.errors import MHEError
from mhe_fairseq.heads.rows.input_rows import with_rows_of_state

#: Where fairseq's models keep the embedding of the tokens they predict, best first, and what a head of ours
#: beside it has.
_EMBEDDINGS = {
    "decoder.embed_tokens.weight": "decoder.head.",
    "encoder.sentence_encoder.embed_tokens.weight": "encoder.head.",
    "decoder.output_projection.weight": "",
}


def read_embedding(path: Path, vocab_size: int) -> Tensor:
    """The embedding of the predicted tokens in a fairseq checkpoint, with the rows that a head adds to it.
    Shape: (V, d).

    Only tensors, numbers, strings and option namespaces are unpickled.

    Raises:
        MHEError: missing, damaged, no such embedding, or of another number of tokens.
    """
    if not path.is_file():
        raise MHEError(f"there is no checkpoint {path}")
    try:
        # What fairseq writes beside tensors was allowed on import (mhe_fairseq.fairseq_fixes.checkpoints).
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # from the pickle, zip and struct machinery, whatever the bytes lead it to
        reason = str(error).strip().split("\n")[0][:200]
        raise MHEError(f"{path} is not a fairseq checkpoint that can be read safely ({reason})") from error
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict):
        raise MHEError(f"{path} is not a fairseq checkpoint: it has no part `model`")
    for name in _EMBEDDINGS:
        embedding = model.get(name)
        if isinstance(embedding, Tensor):
            break
    else:
        raise MHEError(f"checkpoint {path} has no token embedding; looked for {', '.join(_EMBEDDINGS)}")
    if embedding.size(0) != vocab_size:
        raise MHEError(
            f"the embedding in checkpoint {path} ({name}) is of {embedding.size(0)} tokens, the dictionary "
            f"has {vocab_size}; use the data the model was trained on"
        )
    head = _EMBEDDINGS[name]
    return with_rows_of_state(embedding, model, head) if head else embedding
