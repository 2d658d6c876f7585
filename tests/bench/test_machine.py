"""What a run says about its machine."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from mhe_fairseq.bench.machine import Machine, available_memory, cpu_model, find_device
from mhe_fairseq.errors import MHEError


def test_cpu_model(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nmodel\t\t: 7\nmodel name\t: Fast CPU @ 3 GHz: x\nmodel name\t: other\n")
    assert cpu_model(path) == "Fast CPU @ 3 GHz: x"
    path.write_text("Hardware : none\n")
    assert cpu_model(path) == cpu_model(tmp_path / "none") != ""
    assert cpu_model(path) in (platform.processor(), platform.machine(), "unknown CPU")


def test_available_memory(tmp_path: Path) -> None:
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:  100 kB\nMemAvailable:   60 kB\n")
    assert available_memory(torch.device("cpu"), path) == 60 * 1024
    assert available_memory(torch.device("cpu"), tmp_path / "none") is None


def test_here() -> None:
    machine = Machine.here(torch.device("cpu"))
    assert machine.threads == torch.get_num_threads() and machine.cores >= 1 and machine.gpu == ""
    assert f"torch {torch.__version__}, Python {platform.python_version()}" in str(machine)


def test_no_cuda_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MHEError, match="there is no CUDA device"):
        find_device("cuda")
    assert find_device("cpu") == torch.device("cpu")
