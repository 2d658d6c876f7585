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


def test_once_a_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime import interpreter as tritons

    replaced: list[object] = []
    original = tritons._patch_lang_tensor

    def count(*arguments: object) -> None:
        replaced.append(arguments)
        original(*arguments)

    monkeypatch.setattr(tritons, "_patch_lang_tensor", count)
    launches: list[str] = []

    def saw(seen: launch.Launch) -> bool:
        launches.append(seen.kernel.__name__)
        return True

    head = ProductHead(4, Codebook((3, 5)))
    with launch.watched(saw), torch.no_grad():
        head(torch.randn(3, 4), torch.tensor([0, 7, 14]))
    # triton.language and triton.language.core.
    assert launches and len(launches) <= len(replaced) <= 2 * len(launches)
