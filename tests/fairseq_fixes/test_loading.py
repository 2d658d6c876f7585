"""The thread that loads batches, at the end of a process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import torch
from fairseq.data.iterators import BackgroundConsumer

from mhe_fairseq.fairseq_fixes import loading


def test_a_thread_that_ends_soon_is_waited_for() -> None:
    begun = threading.Event()

    def source() -> Iterator[float]:
        begun.set()
        yield float(torch.randn(100).sum())

    thread = BackgroundConsumer(queue.Queue(), source(), None, None)
    thread.daemon = True
    thread.start()
    assert begun.wait(10)
    loading.rest()
    assert not thread.is_alive()


def test_a_thread_that_rests_is_left_alone() -> None:
    waiting: queue.Queue[object] = queue.Queue(1)
    thread = BackgroundConsumer(waiting, iter(range(20)), 20, None)
    thread.daemon = True
    thread.start()
    while not waiting.full():
        thread.join(timeout=0.01)
    loading.rest()
    assert thread.is_alive()
    while thread.is_alive():
        waiting.get()
        thread.join(timeout=0.01)
