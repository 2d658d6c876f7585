"""Rows against tables: what is hard to reach through a head."""

from __future__ import annotations

import pytest
import torch

from mhe_fairseq.heads.kernels import tiles
from mhe_fairseq.heads.kernels.dispatch import interpreting
from mhe_fairseq.heads.kernels.launch import Tile


@pytest.mark.slow
def test_a_table_of_more_than_2_to_the_31_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Places in it are counted in 64 bits. All but the last group's rows are zeros that no memory holds."""
    assert interpreting()
    # Large tiles: the interpreter's time goes by the number of blocks.
    monkeypatch.setitem(tiles.override, "score", Tile({"BM": 16, "BN": 32, "BK": 2048}, 1, 1))
    monkeypatch.setitem(tiles.override, "features", Tile({"BD": 2048, "BK": 32}, 1, 1))
    from mhe_fairseq.heads.kernels.level import LevelTables, Meeting, features_grad, score
    from mhe_fairseq.heads.kernels.plan import Shared, plan_ranges, sort_rows

    groups, length, dim = 16000, 17, 8192
    table = torch.zeros(groups * length, dim, dtype=torch.float16)
    assert table.numel() > 2**31
    rows = torch.randn(length, dim, generator=torch.Generator().manual_seed(1)) / dim**0.5
    table[-length:] = rows.half()
    level = LevelTables(groups, length, None, None, None, True)
    x = torch.randn(3, dim, generator=torch.Generator().manual_seed(2)).half()
    target = torch.tensor([groups * length - 1, 4, groups * length - 6])
    order = sort_rows(target, torch.arange(groups * length), length, 1, None)
    plan = plan_ranges(order.key, groups, 1, 16, 0, None, groups)
    meeting = Meeting(order, plan, None, Shared(), 1, True)
    scores = score(level, meeting, x, table)
    expected = x[[0, 2]].float() @ table[-length:].float().T
    torch.testing.assert_close(scores.z[1:, 0, :length].float(), expected, rtol=2e-3, atol=2e-3)
    assert not scores.z[0, 0, :length].any()
    torch.testing.assert_close(scores.sums[0, :3][[0, 2]], expected.logsumexp(1), rtol=1e-3, atol=1e-3)
    grad = torch.empty_like(x)
    features_grad(level, meeting, table, scores.z, grad, add=False)
    wanted = scores.z[1:, 0, :length].float() @ table[-length:].float()
    torch.testing.assert_close(grad[[0, 2]].float(), wanted, rtol=1e-2, atol=1e-2)
