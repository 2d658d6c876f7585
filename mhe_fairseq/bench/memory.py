"""The memory that a step takes at its peak, beside what was there before it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch._C._profiler import _EventType
from torch.profiler import ProfilerActivity, profile

if TYPE_CHECKING:
    from torch._C._profiler import _ProfilerEvent


@dataclass(frozen=True)
class Peak:
    """Of one forward and backward pass.

    Attributes:
        extra: bytes at the peak beside parameters, inputs and the parameters' gradients: logits, whatever
            the backward pass keeps, the gradient of the features.
        gradients: bytes of the parameters' gradients.
    """

    extra: int
    gradients: int


def measure_peak(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Peak:
    """Run a forward and a backward pass and return its peak.

    On the CPU this is exact and the same in every run: the peak of the sum of all allocations and frees,
    as torch's allocator reports them to the profiler, those of the gradients left out. On CUDA it is the
    allocator's own peak, the gradients' bytes taken off that of the backward pass (at least that much is
    taken where the peak comes before a gradient is made).

    Args:
        loss: the forward pass: returns a scalar.
        parameters: what the gradients are of; their ``grad`` must be None.
    """
    if parameters[0].device.type == "cuda":
        return _peak_on_cuda(loss, parameters)
    # The profiler's library announces its start and stop on stderr; it reads this when it is first used.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=False) as profiler:
        loss().backward()
    results = profiler.profiler.kineto_results if profiler.profiler is not None else None
    if results is None:
        raise RuntimeError("torch's profiler returned nothing")
    gradients = {_address(p.grad) for p in parameters if p.grad is not None}
    return Peak(running_peak(_allocations(results.experimental_event_tree()), gradients), _bytes(parameters))


def running_peak(allocations: Iterable[tuple[int, int]], left_out: set[int]) -> int:
    """The most bytes held at once.

    Args:
        allocations: (address, bytes) in the order of time; bytes are negative for a free. Frees of what was
            allocated before do not count.
        left_out: addresses that do not count, when they are held at the end.
    """
    events = list(allocations)
    held: dict[int, int] = {}
    for index, (address, size) in enumerate(events):
        if size > 0:
            held[address] = index
        else:
            held.pop(address, None)
    skipped = {index for address, index in held.items() if address in left_out}
    sizes: dict[int, int] = {}
    total = peak = 0
    for index, (address, size) in enumerate(events):
        if index in skipped:
            continue
        if size > 0:
            sizes[address] = size
            total += size
        else:
            total -= sizes.pop(address, 0)
        peak = max(peak, total)
    return peak


def _allocations(roots: Sequence[_ProfilerEvent]) -> list[tuple[int, int]]:
    """(address, bytes) of every allocation and free on the CPU, in the order of time."""
    found = []
    for event in _walk(roots):
        if event.tag == _EventType.Allocation:
            fields: Any = event.typed[1]
            if fields.device.type == "cpu":
                found.append((event.start_time_ns, fields.ptr, fields.alloc_size))
    found.sort(key=lambda each: each[0])
    return [(address, size) for _, address, size in found]


def _walk(events: Sequence[_ProfilerEvent]) -> Iterator[_ProfilerEvent]:
    # Not recursive: a tree may be deeper than Python's stack.
    todo = list(events)
    while todo:
        event = todo.pop()
        yield event
        todo.extend(event.children)


def _peak_on_cuda(loss: Callable[[], Tensor], parameters: Sequence[Tensor]) -> Peak:
    device = parameters[0].device
    torch.cuda.synchronize(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    value = loss()
    forward = torch.cuda.max_memory_allocated(device) - before
    torch.cuda.reset_peak_memory_stats(device)
    value.backward()
    torch.cuda.synchronize(device)
    backward = torch.cuda.max_memory_allocated(device) - before
    gradients = _bytes(parameters)
    return Peak(max(forward, backward - gradients), gradients)


def _address(tensor: Tensor) -> int:
    # Not the tensor's own address: it may be a view.
    return tensor.untyped_storage().data_ptr()


def _bytes(parameters: Sequence[Tensor]) -> int:
    return sum(p.grad.numel() * p.grad.element_size() for p in parameters if p.grad is not None)
