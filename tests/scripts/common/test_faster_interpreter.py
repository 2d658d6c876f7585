"""Triton's language is replaced once a launch, not once a call of a function inside a kernel.

That kernels compute the same is what tests/heads/kernels tests, by this interpreter.
"""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.coding import Codebook
from mhe_fairseq.heads import ProductHead
from mhe_fairseq.heads.kernels import launch
from tests.heads.kernels.conftest import interpreter  # noqa: F401


def test_as_often_for_many_blocks_as_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter as tritons

    replaced: list[object] = []
    original = tritons._patch_lang_tensor

    def count(*arguments: object) -> None:
        replaced.append(arguments)
        original(*arguments)

    monkeypatch.setattr(tritons, "_patch_lang_tensor", count)
    blocks: list[int] = []

    def saw(seen: launch.Launch) -> bool:
        blocks.append(sum(seen.grid))
        return True

    head, found = ProductHead(4, Codebook((3, 5))), []
    for rows in (3, 300):
        replaced.clear()
        with launch.watched(saw), torch.no_grad():
            head(torch.randn(rows, 4), torch.zeros(rows, dtype=torch.long))
        found.append(len(replaced))
    half = len(blocks) // 2
    assert sum(blocks[half:]) > sum(blocks[:half])
    assert found[0] == found[1] > 0
