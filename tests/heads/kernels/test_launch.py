"""What is compiled, and how launches are watched."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from mhe_fairseq.heads.kernels import launch, tiles
from mhe_fairseq.heads.kernels.launch import Launch, Tile, cdiv, power_of_2, precision
from tests.helpers import REPO, command_env


@pytest.mark.slow
def test_batches_of_a_hundred_sizes_run_the_same_kernels() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.heads.kernels.compilations"],
        cwd=REPO,
        env={key: value for key, value in command_env().items() if key != "TRITON_INTERPRET"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = {name: (int(once), int(many)) for name, once, many in map(str.split, done.stdout.splitlines())}
    assert len(found) == 9
    for name, (once, many) in found.items():
        assert once >= 4, name
        assert many == once, f"{name}: {many} kernels in place of {once}"


def test_a_watcher_sees_a_launch_and_may_stop_it() -> None:
    seen: list[Launch] = []

    def watch(launched: Launch) -> bool:
        seen.append(launched)
        return False

    with launch.watched(watch):
        launch.launch(None, (3,), (1, None), Tile({"BM": 16}, 8, 2), D=4)
    assert seen == [Launch(None, (3,), (1, None), {"D": 4, "BM": 16}, Tile({"BM": 16}, 8, 2))]


def test_arithmetic() -> None:
    assert [cdiv(a, 4) for a in (0, 1, 4, 5)] == [0, 1, 1, 2]
    assert [power_of_2(n) for n in (0, 1, 2, 3, 8, 9)] == [1, 1, 2, 4, 8, 16]


def test_products_of_fp32_are_exact_unless_tf32_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision(torch.float32) == "interpreted"
    monkeypatch.delenv("TRITON_INTERPRET")
    assert precision(torch.float32) == "ieee"
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        assert precision(torch.float32) == "tf32"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def test_every_kernel_has_a_tile_of_every_type(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = {name: tiles.tile_of(name, torch.float32, 64).constants for name in tiles.CANDIDATES}
    monkeypatch.delenv("TRITON_INTERPRET")
    for name, candidates in tiles.CANDIDATES.items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for groups, met in ((4, 0), (64, 2), (1024, 2), (1024, 16)):
                tile = tiles.tile_of(name, dtype, groups, met)
                assert tile.constants.keys() == tiny[name].keys()
        assert all(each.constants.keys() == tiny[name].keys() for each in candidates)
        monkeypatch.setitem(tiles.override, name, candidates[-1])
        assert tiles.tile_of(name, torch.bfloat16, 64) == candidates[-1]
