"""A command that has done its work waits for fairseq's data loading thread before it ends.

The thread goes on making batches after the last update. Ended with the interpreter in the middle of torch's
code, it takes the process with it: "terminate called without an active exception", and an exit status of
failure after a training that went well.

Seen with ve-fairseq 0.12.3 and torch 2.13. Can go when fairseq joins its thread.
"""

from __future__ import annotations

import atexit
import threading

from fairseq.data.iterators import BackgroundConsumer

#: Seconds. Then the thread has made what its queue takes, and rests.
PATIENCE = 0.5


def install() -> None:
    """Do so at the end of this process."""
    atexit.unregister(rest)
    atexit.register(rest)


def rest() -> None:
    """Wait for the threads that end or rest soon."""
    for thread in threading.enumerate():
        if isinstance(thread, BackgroundConsumer):
            thread.join(timeout=PATIENCE)
