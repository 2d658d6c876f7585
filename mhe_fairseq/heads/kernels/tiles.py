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
