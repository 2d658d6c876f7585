"""An accelerator that is not there: tensors without numbers, on torch's meta device.

For code of heads and of the search: it shows each place where the host would wait for the device, and which
kernels would be launched. Without numbers no whole command runs; for that there is ``pretend_cuda``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mhe_fairseq.heads.kernels import dispatch, launch
from tests.waits import Waits

DEVICE = torch.device("meta")


class MixedError(Exception):
    """An operator was given tensors of the host and of the accelerator, or copied from one to the other."""


class Strict(Waits):
    """As ``Waits``; what mixes devices raises ``MixedError``. Numbers of no dimension may come from the host,
    to be written into the accelerator's memory."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        out = super().__torch_dispatch__(func, types, args, kwargs)
        made = [each for each in tree_leaves(out) if isinstance(each, Tensor)]
        if len({each.device for each in [*given, *made] if each.dim()}) > 1:
            raise MixedError(f"{func} mixes devices")
        return out


class MadeUpGPU:
    """Runs things on tensors that have no numbers: what reads them on the host raises an error."""

    def move(self, thing: Any, seen: dict[int, Any] | None = None) -> Any:
        """Everything in a module or another object, however deep, changed in place where it can be."""
        seen = {} if seen is None else seen
        if id(thing) in seen:
            return seen[id(thing)]
        if isinstance(thing, Tensor):
            fake = torch.empty_strided(thing.shape, thing.stride(), dtype=thing.dtype, device=DEVICE)
            moved = nn.Parameter(fake, thing.requires_grad) if isinstance(thing, nn.Parameter) else fake
            seen[id(thing)] = moved
            return moved
        if isinstance(thing, tuple):
            parts = [self.move(each, seen) for each in thing]
            return type(thing)(*parts) if hasattr(thing, "_fields") else tuple(parts)
        if isinstance(thing, list):
            thing[:] = [self.move(each, seen) for each in thing]
            return thing
        seen[id(thing)] = thing
        if isinstance(thing, dict):
            for key, value in thing.items():
                thing[key] = self.move(value, seen)
        elif type(thing).__module__.startswith(("mhe_fairseq", "fairseq", "tests", "torch.nn")):
            # The codebook is the host's copy of what is on the GPU, too.
            for key, value in vars(thing).items():
                if key != "codebook":
                    object.__setattr__(thing, key, self.move(value, seen))
        return thing

    @contextmanager
    def running(self) -> Iterator[tuple[Strict, list[str]]]:
        """What would wait, and names of the kernels that are launched, as on a GPU; they do nothing."""
        names: list[str] = []

        def saw(seen: launch.Launch) -> bool:
            names.append(seen.kernel.__name__)
            return False

        with Strict() as strict, dispatch.pretend(), launch.watched(saw):
            yield strict, names
