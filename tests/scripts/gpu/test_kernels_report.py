"""scripts/gpu/kernels_report.py: kernels compiled for GPUs that are not here."""

from __future__ import annotations

import importlib.util
import resource
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from mhe_fairseq.heads.kernels.launch import Launch, Tile
from scripts.gpu.compiled import Compiled, faults
from scripts.gpu.kernels_report import main
from scripts.gpu.record import Recorder, signature_key
from tests.helpers import REPO, run_command

needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")

REPORT = [sys.executable, str(REPO / "scripts" / "gpu" / "kernels_report.py")]

FINE = Compiled(120, 40, 49_152, {"HGMMA": 8}, {"LDGSTS": 24}, True, 0.5)


def toys(*names: str) -> subprocess.CompletedProcess[str]:
    script = REPO / "tests" / "scripts" / "gpu" / "toy_kernels.py"
    return run_command([sys.executable, str(script), *names], check=False)


@needs_triton
@pytest.mark.slow
def test_every_kernel_that_is_shipped_fits_a_hopper_card() -> None:
    done = run_command([*REPORT, "--quick"])
    assert "scores.score bf16" in done.stdout and "products.table bf16" in done.stdout
    assert "no fault" in done.stdout.splitlines()[-1]
    products = [line for line in done.stdout.splitlines() if "products." in line or "scores.score" in line]
    assert products and all("MMA" in line and "LDGSTS" in line for line in products)


@pytest.mark.slow
@needs_triton
def test_a_kernel_that_fits_is_told_and_is_no_fault() -> None:
    done = toys("good")
    assert done.returncode == 0, done.stderr
    assert "toy __main__.good bf16, BM 64, 4 warps, 2 stages, sm_90: " in done.stdout
    assert "HGMMA" in done.stdout and "1 kernel compiled" in done.stdout


@pytest.mark.slow
@needs_triton
def test_kernels_that_do_not_fit_are_named() -> None:
    done = toys("good", "spills", "broken", "shared")
    assert done.returncode == 1
    wrong = done.stderr.splitlines()
    assert len(wrong) == 3
    for kernel, fault in (
        ("spills", "bytes a thread, more than 64"),
        ("broken", "does not compile: CompilationError"),
        ("shared", "bytes of shared memory, sm_90 has 232,448"),
    ):
        assert any(f"__main__.{kernel} " in line and fault in line for line in wrong), done.stderr


def test_faults() -> None:
    assert faults(FINE, 90) == faults(replace(FINE, stack=64), 80) == []
    assert faults(replace(FINE, stack=72), 90) == ["spills 72 bytes a thread, more than 64"]
    assert faults(replace(FINE, shared=100 * 1024), 80) == []
    assert faults(replace(FINE, shared=100 * 1024), 86) == [
        "needs 102,400 bytes of shared memory, sm_86 has 101,376"
    ]
    assert "without tensor cores" in faults(replace(FINE, tensor_cores={}), 90)[0]
    assert faults(replace(FINE, tensor_cores={}, half_products=False), 90) == []


def test_which_launches_a_compiled_kernel_serves() -> None:
    def kernel() -> None: ...

    def key(*arguments: object, **constants: object) -> object:
        return signature_key(Launch(kernel, (1,), arguments, constants, Tile({}, 4, 3)))

    x = torch.zeros(64)
    assert key(x, 32, A=1) == key(torch.ones(128), 48, A=1) != key(x, 32, A=2)
    assert key(x, 32) != key(x[1:], 32), "another alignment"
    assert key(x, 32) != key(x.half(), 32) != key(None, 32)
    assert key(x, 32) != key(x, 31) != key(x, 1) != key(x, 2**40)
    assert key(x, 31) == key(x, 33) and key(x, 0.5) == key(x, 0.25)


def peak_memory() -> int:
    """Of this process, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_tables_of_a_large_vocabulary_take_no_memory() -> None:
    made = []

    def run() -> None:
        embed = torch.nn.Embedding(1 << 20, 4096, dtype=torch.bfloat16)
        made.append(embed.half().weight)
        made.append(torch.empty(1000))

    before = peak_memory()
    assert Recorder().record(run, "", "", "") == 0
    assert made[0].dtype == torch.float16 and not made[1].any()
    # 8 GiB, twice, if they were written.
    assert peak_memory() - before < 2**30


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--arch", "90,95"], "--arch takes compute capabilities among 80, 86"),
        (["--head", "softmax"], "--head takes some of cascade, cascade-tied"),
        (["--dtype", "fp8"], "--dtype takes some of fp32, bf16, fp16, amp; got 'fp8'"),
        (["--jobs", "0"], "--jobs must be at least 1, got 0"),
    ],
)
def test_bad_input(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 1
    assert message in capsys.readouterr().err
