"""How each kernel is cut into programs: one table, by type and by how many tokens a group has.

Tiles of 64 rows can use the wide tensor-core instruction of a Hopper card, tiles of 16 or 32 waste less where
a group has few tokens. They are chosen for a batch of ``TOKENS`` tokens, whatever the batch, so that a run
compiles each kernel once. None spills registers on sm_80, sm_90 and sm_100: ``scripts/gpu/kernels_report.py``.
"""

from __future__ import annotations

import torch

from mhe_fairseq.heads.kernels.dispatch import interpreting
from mhe_fairseq.heads.kernels.launch import Tile

#: Tokens of a batch that tiles are chosen for.
TOKENS = 4096

#: Tiles to use in place of the table's, by the name of a kernel: for measuring.
override: dict[str, Tile] = {}

#: What rows or programs of the interpreter have: as little as ``tl.dot`` takes.
_TINY = {"BM": 16, "BN": 16, "BK": 16, "BD": 16, "BL": 16, "BR": 16, "BG": 16}

_KEYS = {
    "score": ("BM", "BN", "BK"),
    "features": ("BD", "BK"),
    "table": ("BL", "BD", "BR"),
    "combine": ("BM", "BG"),
    "logits": ("BM", "BN"),
}


def tile_of(name: str, dtype: torch.dtype, groups: int) -> Tile:
    """The tile of a kernel.

    Args:
        name: "score", "features", "table": products; "combine", "logits": sums.
        dtype: of the features.
        groups: of tokens, or columns where no rows are grouped.
    """
    if name in override:
        return override[name]
    if interpreting():
        return Tile({key: _TINY[key] for key in _KEYS[name]}, 1, 1)
    if name == "combine":
        return Tile({"BM": 16, "BG": 256}, 4, 1)
    if name == "logits":
        return Tile({"BM": 16, "BN": 128}, 4, 1)
    is_wide = dtype == torch.float32
    few = TOKENS // groups < 48
    if name == "score":
        if is_wide:
            return Tile({"BM": 32, "BN": 64, "BK": 32}, 4, 2)
        return Tile({"BM": 32, "BN": 64, "BK": 64} if few else {"BM": 64, "BN": 64, "BK": 64}, 4 if few else 8, 3)
    if name == "features":
        if is_wide:
            return Tile({"BD": 64, "BK": 32}, 4, 2)
        return Tile({"BD": 128, "BK": 64} if few else {"BD": 128, "BK": 32}, 4 if few else 8, 3)
    if is_wide:
        return Tile({"BL": 32, "BD": 64, "BR": 32}, 4, 2)
    return Tile({"BL": 64, "BD": 128, "BR": 32}, 8, 3)
