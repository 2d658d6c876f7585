"""fairscale, which `--ddp-backend fully_sharded` of fairseq is, between gloo ranks.

It is written for GPUs: streams, copies to the device, collectives that gloo lacks. On the PYTHONPATH of
a command these become what they mean on a CPU; what is gathered, computed, reduced and saved is
fairscale's own.
"""

import contextlib
from typing import Any

import fairscale.nn.data_parallel.fully_sharded_data_parallel as fsdp
import torch
import torch.distributed as dist


class _Stream:
    """The only one there is."""

    def wait_stream(self, other: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Stream)

    def __hash__(self) -> int:
        return 0


class _Streams(dict[str, Any]):
    def __missing__(self, key: str) -> _Stream:
        return _Stream()


def _reduce_scatter(output: torch.Tensor, whole: torch.Tensor, group: Any = None, **unused: Any) -> None:
    total = whole.reshape(-1).clone()
    dist.all_reduce(total, group=group)
    output.copy_(total.view(dist.get_world_size(group), -1)[dist.get_rank(group)].view_as(output))


def _same(thing: Any, *unused: Any, **ignored: Any) -> Any:
    return thing


mended: Any = torch
mended.cuda.stream = lambda stream: contextlib.nullcontext()
mended.cuda.current_stream = lambda *device: _Stream()
mended.cuda.synchronize = mended.cuda.empty_cache = lambda: None
mended.Tensor.cuda = mended.nn.Module.cuda = _same
mended.Tensor.record_stream = lambda tensor, stream: None
mended.distributed.reduce_scatter_tensor = mended.distributed._reduce_scatter_base = _reduce_scatter

_setup_streams = fsdp.FullyShardedDataParallel._setup_streams


def _setup(self: Any) -> None:
    _setup_streams(self)
    self._streams = _Streams(self._streams)


fsdp.FullyShardedDataParallel._setup_streams = _setup
fsdp._get_default_cuda_device = lambda module: torch.device("cpu")
