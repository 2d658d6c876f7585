"""Ranks that resume a training get the checkpoint from rank 0, under torch 2.6 and later too.

fairseq sends it as the bytes of ``torch.save`` and reads them with ``torch.load``, which since 2.6 refuses
the config in it (an omegaconf object, as rank 0 has made it of the file). The bytes are not a file of unknown
origin: they come from a process of the same job. So they are sent by ``torch.distributed``'s own means.

Since torch 2.6. Can go when fairseq passes ``weights_only=False`` there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from fairseq.distributed import utils


def install() -> None:
    """Take the place of fairseq's function."""
    utils._broadcast_object_slow = broadcast_object


def broadcast_object(obj: Any, src_rank: int, group: Any, dist_device: torch.device) -> Any:
    """What rank ``src_rank`` of ``group`` gives, on every rank of it.

    Args:
        obj: anything that can be pickled; not read on the other ranks.
        src_rank: of the sender.
        group: of processes.
        dist_device: where the backend wants what it sends.
    """
    box = [obj]
    dist.broadcast_object_list(box, src=src_rank, group=group, device=dist_device)
    return box[0]
