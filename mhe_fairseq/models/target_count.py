"""How many targets are not padding, known on the host without a wait for the model's forward."""

from __future__ import annotations

import torch
from torch import Tensor


class TargetCount:
    """The number of targets that are not padding, on its way to the host.

    Made before the model is called: then the number lies in an accelerator's queue before all of the
    model's forward, and whoever asks for it after the forward was queued waits for what came before it
    only, while the forward keeps the device busy. Picking tokens by a mask would wait for the forward.

    Neither a tensor nor a tuple or dataclass, which wrappers that move a model's arguments take apart.

    Args:
        target: (B, T) long.
        padding: the token that does not count.
    """

    def __init__(self, target: Tensor, padding: int) -> None:
        self._target, self._padding = target, padding
        self._version = _version(target)
        count = target.ne(padding).sum()
        self._event: torch.cuda.Event | None = None
        self._count: Tensor | int
        if target.device.type == "cuda":
            # Into memory that is not pinned the copy would wait.
            self._count = torch.empty((), dtype=torch.long, device="cpu", pin_memory=True)
            self._count.copy_(count, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(target.device))
        else:
            self._count = int(count)

    def is_of(self, target: Tensor, padding: int) -> bool:
        """Whether it counts these targets, and they are what they were: a wrong number would drop tokens."""
        is_same = target is self._target and padding == self._padding
        return is_same and _version(target) == self._version

    def value(self) -> int:
        """The number. Waits for its copy, which was queued before the model's forward; not for what came
        after it."""
        if self._event is not None:
            self._event.synchronize()
        return int(self._count)


def kept_positions(keep: Tensor, count: int) -> Tensor:
    """Where a mask is true, rising, without a wait: the caller knows how often it is. (P,) bool -> (count,)
    long."""
    try:
        return torch.nonzero_static(keep, size=count).squeeze(1)
    except NotImplementedError:
        # Some versions of torch have it on the CPU only. Stable: what is kept stays in order.
        return keep.byte().argsort(descending=True, stable=True)[:count]


def _version(target: Tensor) -> int:
    """How often the tensor was written to; tensors of inference mode do not tell."""
    return -1 if target.is_inference() else target._version
