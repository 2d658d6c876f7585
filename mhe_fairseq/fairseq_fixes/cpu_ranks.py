"""Several ranks on machines without a GPU: to try a cluster's commands out, and to test them.

fairseq takes it that a rank has a GPU. Without one, its default ``--ddp-backend`` names a device to torch's
DistributedDataParallel, which refuses it for a model on the CPU; and under ``torchrun`` every process trains
a model by itself, all of them into one folder.

In all versions of fairseq. Can go when it names no device for models on the CPU, and reads torchrun's
variables without a GPU.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from fairseq.distributed import utils
from fairseq.models import distributed_fairseq_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mhe_fairseq.fairseq_fixes import wrap

#: What torchrun tells each of its processes; fairseq wants the first four, the last is torchrun's only.
_TORCHRUN = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "RANK", "TORCHELASTIC_RUN_ID")


def install() -> None:
    """Take the place of fairseq's functions, for models on the CPU only."""
    distributed_fairseq_model.DistributedDataParallel = _ddp
    wrap(utils, "infer_init_method", _from_torchrun)


def _ddp(module: nn.Module, **settings: Any) -> DistributedDataParallel:
    if not any(parameter.is_cuda for parameter in module.parameters()):
        settings["device_ids"] = settings["output_device"] = None
    return DistributedDataParallel(module, **settings)


def _from_torchrun(infer: Callable[..., None]) -> Callable[..., None]:
    def infer_init_method(cfg: Any, force_distributed: bool = False) -> None:
        started = all(name in os.environ for name in _TORCHRUN)
        if torch.cuda.is_available() or not started or cfg.distributed_init_method is not None:
            infer(cfg, force_distributed)
            return
        cfg.distributed_init_method = "env://"
        cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
        cfg.distributed_rank = int(os.environ["RANK"])
        cfg.distributed_backend = "gloo"
        cfg.distributed_no_spawn = True
        cfg.device_id = 0

    return infer_init_method
