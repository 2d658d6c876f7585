"""Files that are not the checkpoints they should be."""

from __future__ import annotations

from pathlib import Path

import torch

from mhe_fairseq.coding import Codebook

#: What is wrong -> what is said of it.
DAMAGED = {
    "missing": "there is no checkpoint",
    "cut": "is damaged or cut short",
    "empty": "is damaged or cut short (0 bytes",
    "text": "is not a checkpoint of a fairseq model (11 bytes, ",
    "codebook": "is not a checkpoint of a fairseq model",
    "tensor": "is not a checkpoint of a fairseq model",
}


def write_damaged(what: str, path: Path, content: bytes) -> None:
    """Write one of ``DAMAGED``; ``content`` is that of a good checkpoint."""
    if what == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif what == "empty":
        path.touch()
    elif what == "text":
        path.write_text("a sentence\n")
    elif what == "codebook":
        Codebook((2, 3), vocab_size=6).save(path)
    elif what == "tensor":
        torch.save(torch.zeros(3), path)
