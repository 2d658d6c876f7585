"""Reports on kernels made up for the purpose: ``python tests/scripts/gpu/toy_kernels.py good spills ...``.

A command, because kernels are jitted for the compiler or for the interpreter when triton is imported, and the
tests import it for the interpreter.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False
from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)
sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent.parent))

import torch
import triton
import triton.language as tl

from mhe_fairseq.heads.kernels.launch import Tile, launch
from scripts.gpu.kernels_report import conclude, report
from scripts.gpu.record import Recorder


@triton.jit(do_not_specialize=["N"])
def good(x, y, out, N, BM: tl.constexpr):
    i = tl.arange(0, BM)
    at = i[:, None] * BM + i[None, :]
    a = tl.load(x + at, mask=at < N, other=0.0)
    b = tl.load(y + at, mask=at < N, other=0.0)
    tl.store(out + at, tl.dot(a, b), mask=at < N)


@triton.jit(do_not_specialize=["N"])
def spills(x, y, out, N, BM: tl.constexpr):
    i = tl.arange(0, BM)
    at = i[:, None] * BM + i[None, :]
    a = tl.load(x + at, mask=at < N, other=0.0).to(tl.float32)
    b = tl.load(y + at, mask=at < N, other=0.0).to(tl.float32)
    # Both are needed after a sum over all of one of them.
    tl.store(out + at, tl.sqrt(a) * tl.sum(tl.exp(a + tl.trans(b))) + tl.exp(b), mask=at < N)


@triton.jit(do_not_specialize=["N"])
def broken(x, y, out, N, BM: tl.constexpr):
    i = tl.arange(0, BM)
    tl.store(out + i, tl.load(x + i) + tl.load(y + tl.arange(0, 2 * BM)))


@triton.jit
def shared(x, y, out, N, BM: tl.constexpr):
    i = tl.arange(0, BM)
    acc = tl.zeros((BM, BM), tl.float32)
    for k in range(0, N, BM):
        at = i[:, None] * N + k + i[None, :]
        acc = tl.dot(tl.load(x + at), tl.load(y + at), acc)
    tl.store(out + i[:, None] * BM + i[None, :], acc)


TILES = {
    "good": Tile({"BM": 64}, 4, 2),
    "spills": Tile({"BM": 256}, 4, 1),
    "broken": Tile({"BM": 16}, 1, 1),
    "shared": Tile({"BM": 128}, 8, 8),
}


def main(names: list[str]) -> int:
    recorder = Recorder()
    x = torch.zeros(256, 256, dtype=torch.bfloat16)
    out = torch.zeros(256, 256)
    for name in names:
        tile = TILES[name]
        run = lambda name=name, tile=tile: launch(globals()[name], (1,), (x, x, out, 4096), tile)  # noqa: E731
        assert recorder.record(run, "toy", "bf16", "a test") == 1
    signatures = list(recorder.found.values())
    return conclude(report(signatures, [90], 2), len(signatures), 0.0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
