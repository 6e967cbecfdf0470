"""Long buffered writes of one file, by two threads that go from one to the next.

The kernel lets one buffered write at a time into a file: a second one is ready for its turn, and more would only spin
for the lock. A thread that is done takes the next write itself; to be told by the event loop would cost it two hops.
"""

import asyncio
import threading
from collections import deque
from concurrent.futures import Future
from typing import Final

from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.transfer import write_fully

__all__ = ["LongWrites"]

_THREADS: Final = 2


class LongWrites:
    """The long writes of one descriptor."""

    __slots__ = ("_descriptor", "_lock", "_threads", "_waiting")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._waiting: deque[tuple[int, memoryview, Future[None]]] = deque()
        self._threads = 0
        self._lock = threading.Lock()  # guards both; nothing else is locked inside

    def __repr__(self) -> str:
        return f"LongWrites(waiting={len(self._waiting)}, threads={self._threads})"

    def write(self, offset: int, data: memoryview) -> "asyncio.Future[None]":
        """Write all of `data`. A cancelled write happens, or not at all where no thread has it yet."""
        done: Future[None] = Future()
        with self._lock:
            self._waiting.append((offset, data, done))
            more = self._threads < _THREADS
            self._threads += more
        if more:
            self._descriptor.submit(self._work)
        return asyncio.wrap_future(done)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._threads -= 1
                    return
                offset, data, done = self._waiting.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                write_fully(self._descriptor.fd, offset, data)
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)
