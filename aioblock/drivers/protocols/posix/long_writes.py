"""Long buffered writes of one file, and copies into it, by a thread that goes from one to the next.

The kernel lets one buffered write at a time into a file, and a second thread would spin for the lock: 23 percent of the
processor time of a conversion, measured. The thread takes the next write itself; to be told by the event loop would
cost it two hops.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial

from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.transfer import write_fully

__all__ = ["LongWrites"]


class LongWrites:
    """The long writes of one descriptor."""

    __slots__ = ("_descriptor", "_lock", "_running", "_waiting")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._waiting: deque[tuple[Callable[[], None], Future[None]]] = deque()
        self._running = False
        self._lock = threading.Lock()  # guards both; nothing else is locked inside

    def __repr__(self) -> str:
        return f"LongWrites(waiting={len(self._waiting)}, running={self._running})"

    def write(self, offset: int, data: memoryview) -> "asyncio.Future[None]":
        """Write all of `data`. A cancelled write happens, or not at all where no thread has it yet."""
        return self.run(partial(write_fully, self._descriptor.fd, offset, data))

    def run(self, work: Callable[[], None], other: Descriptor | None = None) -> "asyncio.Future[None]":
        """Do work that writes to the file, and uses `other` too, which is not closed before. Cancelled: likewise."""
        done: Future[None] = Future()
        if other is not None:
            held = other.hold()
            done.add_done_callback(lambda _: held.set_result(None))
        with self._lock:
            self._waiting.append((work, done))
            begin, self._running = not self._running, True
        if begin:
            self._descriptor.submit(self._work)
        return asyncio.wrap_future(done)

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._running = False
                    return
                work, done = self._waiting.popleft()
            if not done.set_running_or_notify_cancel():
                continue
            try:
                work()
            except BaseException as error:
                done.set_exception(error)
            else:
                done.set_result(None)
