"""Which tensors would be on a GPU, followed through a program that runs on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef


class DeviceNumbers:
    """The storages of tensors that were added, and of all that is computed from them.

    Tensors of a GPU need not be followed: they are known by their device.
    """

    def __init__(self) -> None:
        # By a weak reference: as long as it is held, no other storage gets this one's place.
        self._held: dict[int, StorageWeakRef] = {}

    def add(self, nested: Any) -> None:
        """Tensors in tuples, lists and dicts."""
        for tensor in _tensors(nested):
            reference = StorageWeakRef(tensor.untyped_storage())
            self._held[reference.cdata] = reference

    def remove(self, nested: Any) -> None:
        """They are on the host now."""
        for tensor in _tensors(nested):
            self._held.pop(StorageWeakRef(tensor.untyped_storage()).cdata, None)

    def has(self, nested: Any) -> bool:
        """Any of the tensors."""
        return any(
            each.is_cuda or StorageWeakRef(each.untyped_storage()).cdata in self._held
            for each in _tensors(nested)
        )

    def follow(self, given: Any, result: Any) -> None:
        """What was computed of something on the device is there, too."""
        if self.has(given):
            self.add(result)


def _tensors(nested: Any) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        if not nested.is_sparse:
            yield nested
    elif isinstance(nested, dict):
        for each in nested.values():
            yield from _tensors(each)
    elif isinstance(nested, (tuple, list)):
        for each in nested:
            yield from _tensors(each)
