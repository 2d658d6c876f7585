"""How each kernel is cut into programs: one table, by type and by how many tokens a group has.

Tiles of 64 rows can use the wide tensor-core instruction of a Hopper card, tiles of 16 or 32 waste less where
a group has few tokens. They are chosen for a batch of ``TOKENS`` tokens, whatever the batch, so that a run
compiles each kernel once. None spills registers on sm_80, sm_90 or sm_100: ``scripts/gpu/kernels_report.py``.
"""

from __future__ import annotations

import torch

from mhe_fairseq.heads.kernels.dispatch import interpreting
from mhe_fairseq.heads.kernels.launch import Tile, power_of_2

#: Tokens of a batch that tiles are chosen for.
TOKENS = 4096

#: Tiles to use in place of the table's, by the name of a kernel: for measuring.
override: dict[str, Tile] = {}

#: What rows or programs of the interpreter have: as little as ``tl.dot`` takes.
_TINY = {"BM": 16, "BN": 16, "BK": 16, "BD": 16, "BL": 16, "BR": 16, "BG": 16}

#: So many groups that a row meets decide the tile.
_MANY = 8

_KEYS = {
    "score": ("BM", "BN", "BK"),
    "features": ("BD", "BK"),
    "table": ("BL", "BD", "BR"),
    "combine": ("BM", "BG"),
    "logits": ("BM", "BN"),
}


def tile_of(name: str, dtype: torch.dtype, groups: int, met: int = 0) -> Tile:
    """The tile of a kernel.

    Args:
        name: "score", "features", "table": products; "combine", "logits": sums.
        dtype: of the features.
        groups: of tokens, or columns where no rows are grouped.
        met: groups that a row meets beside its own.
    """
    if name in override:
        return override[name]
    if interpreting():
        return Tile({key: _TINY[key] for key in _KEYS[name]}, 1, 1)
    if name == "combine":
        return Tile({"BM": 16, "BG": 256}, 4, 1)
    if name == "logits":
        return Tile({"BM": 16, "BN": 128}, 4, 1)
    if dtype == torch.float32:
        return {
            "score": Tile({"BM": 32, "BN": 32, "BK": 32}, 4, 2),
            "features": Tile({"BD": 64, "BK": 32}, 4, 2),
            "table": Tile({"BL": 32, "BD": 64, "BR": 32}, 4, 2),
        }[name]
    # What rows meet in parts comes in full tiles, and is most of the work where it is several groups.
    if met >= _MANY or TOKENS // groups >= 48:
        return {
            "score": Tile({"BM": 64, "BN": 64, "BK": 64}, 8, 3),
            "features": Tile({"BD": 128, "BK": 32}, 8, 3),
            "table": Tile({"BL": 64, "BD": 128, "BR": 64}, 8, 3),
        }[name]
    return {
        "score": Tile({"BM": 32, "BN": 64, "BK": 64}, 4, 3),
        "features": Tile({"BD": 128, "BK": 64}, 4, 3),
        "table": Tile({"BL": 64, "BD": 128, "BR": 32}, 8, 3),
    }[name]


def search_tile(name: str, dtype: torch.dtype, length: int, rows: int = 1) -> Tile:
    """The tile of a kernel of beam search.

    Args:
        name: "best_first" or "given".
        dtype: of the features.
        length: digits of a prefix.
        rows: hypotheses of a sentence.
    """
    if name in override:
        return override[name]
    height = max(16, power_of_2(rows))
    if interpreting():
        return Tile({"BM": height, "BN": 16, "BD": 16}, 1, 1)
    # A whole group in one tile is read once; its logits stay in registers.
    most = 256 if name == "given" else 8192 // height
    width = min(max(16, power_of_2(length)), most if dtype != torch.float32 else most // 4)
    # Cards below the largest have 99 KiB of shared memory for what is read ahead.
    depth = 32 if dtype == torch.float32 or width > 256 else 64
    return Tile({"BM": height, "BN": width, "BD": depth}, 8 if width * height > 2048 else 4, 3)


def row_tile(length: int) -> Tile:
    """The tile of "best_tokens", whose rows have ``length`` values for each value of the first digit."""
    if "best_tokens" in override:
        return override["best_tokens"]
    return Tile({"BJ": 16 if interpreting() else min(512, power_of_2(length))}, 4, 1)


#: What is worth trying on a card in place of the above, in half precision: ``make gpu-check`` times it.
CANDIDATES: dict[str, list[Tile]] = {
    "score": [
        Tile({"BM": 16, "BN": 64, "BK": 64}, 4, 3),
        Tile({"BM": 32, "BN": 64, "BK": 64}, 4, 3),
        Tile({"BM": 64, "BN": 64, "BK": 64}, 8, 3),
        Tile({"BM": 64, "BN": 128, "BK": 32}, 8, 3),
    ],
    "features": [
        Tile({"BD": 128, "BK": 64}, 4, 3),
        Tile({"BD": 128, "BK": 32}, 8, 3),
        Tile({"BD": 64, "BK": 64}, 4, 4),
    ],
    "table": [
        Tile({"BL": 64, "BD": 128, "BR": 32}, 8, 3),
        Tile({"BL": 64, "BD": 128, "BR": 64}, 8, 3),
        Tile({"BL": 64, "BD": 256, "BR": 32}, 8, 3),
        Tile({"BL": 32, "BD": 128, "BR": 16}, 4, 4),
    ],
    "combine": [Tile({"BM": 16, "BG": 256}, 4, 1), Tile({"BM": 4, "BG": 512}, 4, 1)],
    "logits": [Tile({"BM": 16, "BN": 128}, 4, 1), Tile({"BM": 4, "BN": 512}, 4, 1)],
}
