"""What a figure was measured on."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from mhe_fairseq.errors import MHEError


@dataclass(frozen=True)
class Machine:
    """The machine of a run.

    Attributes:
        cpu: model.
        cores: that this process may use.
        threads: that torch uses.
        gpu: its name, or "" when the figures are the CPU's.
        torch_version: torch's.
        python_version: Python's.
    """

    cpu: str
    cores: int
    threads: int
    gpu: str
    torch_version: str
    python_version: str

    @classmethod
    def here(cls, device: torch.device) -> Machine:
        """This one, as torch is set now."""
        return cls(
            cpu=cpu_model(),
            cores=_cores(),
            threads=torch.get_num_threads(),
            gpu=torch.cuda.get_device_name(device) if device.type == "cuda" else "",
            torch_version=torch.__version__,
            python_version=platform.python_version(),
        )

    def __str__(self) -> str:
        device = f"{self.gpu}, beside " if self.gpu else ""
        return (
            f"{device}{self.cpu}, {_count(self.cores, 'core')}, {_count(self.threads, 'thread')}, "
            f"torch {self.torch_version}, Python {self.python_version}"
        )


def cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's name."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown CPU"


def find_device(name: str) -> torch.device:
    """The device called ``name``, "cpu" or "cuda".

    Raises:
        MHEError: there is none.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise MHEError(
            f"there is no CUDA device that torch {torch.__version__} can use here; --device cpu runs on "
            "the CPU"
        )
    return torch.device(name)


def available_memory(device: torch.device, meminfo: Path = Path("/proc/meminfo")) -> int | None:
    """Bytes that could be allocated now, or None where nothing tells."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        lines = meminfo.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    for line in lines:
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
