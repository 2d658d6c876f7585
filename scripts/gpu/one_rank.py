"""``fairseq-train`` by one rank, wrapped for many: its collectives run, over this rank alone.

    python -m scripts.gpu.one_rank DATA --ddp-backend pytorch_ddp ...

fairseq begins a process group for one rank where it is told how to, and then leaves the model unwrapped,
since there is nobody to agree with. Here it is wrapped; which way is logged.
"""

from __future__ import annotations

import logging
import socket
import sys
from typing import Any

# Before fairseq, whose import would set up logging in another form than fairseq-train does.
import fairseq_cli.train
import torch
from fairseq import models
from fairseq.trainer import Trainer

logger = logging.getLogger("one_rank")

#: Before the wrapper's name, in the log.
MARK = "one rank, wrapped by"


def _wrapped(*arguments: Any, **settings: Any) -> Any:
    wrapped = _wrap(*arguments, **settings)
    # fairseq passes attributes on by a proxy of its own.
    inner = wrapped.module if type(wrapped).__name__ == "ModuleProxyWrapper" else wrapped
    logger.info("%s %s over %s", MARK, type(inner).__name__, torch.distributed.get_backend())
    return wrapped


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


if __name__ == "__main__":
    _wrap, models.DistributedFairseqModel = models.DistributedFairseqModel, _wrapped
    Trainer.use_distributed_wrapper = property(lambda self: True)
    sys.argv += ["--distributed-world-size", "1", "--distributed-rank", "0", "--distributed-no-spawn"]
    sys.argv += ["--distributed-init-method", f"tcp://127.0.0.1:{_free_port()}"]
    sys.argv += ["--distributed-backend", "gloo" if "--cpu" in sys.argv else "nccl"]
    fairseq_cli.train.cli_main()
