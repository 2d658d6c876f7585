"""The processes of a training: one, or those that torchrun started."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from mhe_fairseq.errors import MHEError


@dataclass(frozen=True)
class Ranks:
    """This process among ``size``; it is number ``rank``."""

    rank: int
    size: int
    device: torch.device

    @classmethod
    def start(cls, device: str) -> Ranks:
        """Meet the other processes of torchrun, if there are.

        Args:
            device: "auto", "cpu", "cuda" or "cuda:1".

        Raises:
            MHEError: a GPU is asked for, and there is none.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if device.startswith("cuda") and not torch.cuda.is_available():
            raise MHEError(f"--device {device} needs a GPU, and torch sees none; use --device cpu")
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size > 1:
            if device == "cuda":
                device = f"cuda:{os.environ['LOCAL_RANK']}"
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        rank = dist.get_rank() if size > 1 else 0
        return cls(rank, size, torch.device(device))

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def total(self, value: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def share(self, places: list[int]) -> list[int]:
        """This process's part of a batch."""
        return places[self.rank :: self.size]

    def wait(self) -> None:
        """For all."""
        if self.size > 1:
            dist.barrier()

    def end(self) -> None:
        if self.size > 1:
            dist.destroy_process_group()
