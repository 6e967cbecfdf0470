"""Buffered writes of one file, and copies into it, by a thread that goes from one to the next.

The kernel lets one buffered write at a time into a file; a second thread would spin for the lock: 23 percent of the
processor time of a conversion, measured. A hop to a thread and back costs more than a small write to the page cache. So
there is one thread while there is work: it begins with all that one turn of the loop brings, takes what has come
meanwhile by itself, and the loop is told of many small writes at a time.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

from aioblock.core.io import Done, wakes
from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.transfer import write_fully

__all__ = ["SMALL", "Writes"]

SMALL: Final = 1 << 16  # bytes; of longer writes the loop is told one by one
_BATCH: Final = 64  # small writes that go together: the first one waits for the last

_Waiter = asyncio.Future[None] | None
"""Who waits, and may have been cancelled."""
_Small = tuple[int, memoryview, Done, _Waiter]
_Long = tuple[Callable[[], None], Done, _Waiter]


class Writes:
    """The buffered writes of one descriptor, for one event loop."""

    __slots__ = ("_descriptor", "_lock", "_long", "_running", "_small")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._small: deque[_Small] = deque()
        self._long: deque[_Long] = deque()
        self._running = False
        self._lock = threading.Lock()  # guards all three; nothing else is locked inside

    def __repr__(self) -> str:
        return f"Writes(small={len(self._small)}, long={len(self._long)}, running={self._running})"

    def begin(self, offset: int, data: memoryview, done: Done, waiter: _Waiter = None) -> None:
        """Write all of `data`, then call `done` on the loop. A cancelled waiter's write may be left out."""
        with self._lock:
            if len(data) <= SMALL:
                self._small.append((offset, data, done, waiter))
            else:
                self._long.append((partial(write_fully, self._descriptor.fd, offset, data), done, waiter))
        self._go_on()

    def write(self, offset: int, data: memoryview) -> "asyncio.Future[None]":
        """Write all of `data`. A cancelled write happens, or not at all where the thread has not come to it."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begin(offset, data, wakes(waiter), waiter)
        return waiter

    def run(self, work: Callable[[], None], other: Descriptor) -> "asyncio.Future[None]":
        """Do work that writes to the file, and uses `other` too, which is not closed before. Cancelled: likewise."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        held, wake = other.hold(), wakes(waiter)

        def done(error: Exception | None) -> None:
            held.set_result(None)
            wake(error)

        with self._lock:
            self._long.append((work, done, waiter))
        self._go_on()
        return waiter

    def _go_on(self) -> None:
        """Have the thread begin at the end of this turn of the loop, unless it is at work."""
        with self._lock:
            if self._running:
                return
            self._running = True
        asyncio.get_running_loop().call_soon(self._start)

    def _start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._descriptor.submit(partial(self._work, loop))
        except ValueError as error:  # the file was closed in the same turn
            self._running = False
            waiting = [write[2] for write in self._small] + [work[1] for work in self._long]
            self._small.clear()
            self._long.clear()
            _tell(waiting, [error] * len(waiting))

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: until nothing is left, small writes and long ones in turns."""
        while True:
            with self._lock:
                small = [self._small.popleft() for _ in range(min(len(self._small), _BATCH))]
                long = self._long.popleft() if self._long else None
                if not small and long is None:
                    self._running = False
                    return
            if small:
                self._report(loop, [write[2] for write in small], _write_all(self._descriptor.fd, small))
            if long is not None:
                work, done, waiter = long
                self._report(loop, [done], [None if waiter is not None and waiter.cancelled() else _outcome(work)])

    def _report(self, loop: asyncio.AbstractEventLoop, done: list[Done], outcome: list[Exception | None]) -> None:
        try:
            loop.call_soon_threadsafe(_tell, done, outcome)
        except RuntimeError:  # the loop is closed: nobody waits any more
            pass


def _write_all(fd: int, batch: list[_Small]) -> list[Exception | None]:
    """Each write, and what became of it: one that fails does not hinder the others."""
    outcome: list[Exception | None] = []
    for offset, data, _, waiter in batch:
        if waiter is not None and waiter.cancelled():
            outcome.append(None)
            continue
        try:
            write_fully(fd, offset, data)
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)
    return outcome


def _outcome(work: Callable[[], None]) -> Exception | None:
    try:
        work()
    except Exception as error:
        return error
    return None


def _tell(done: list[Done], outcome: list[Exception | None]) -> None:
    for call, error in zip(done, outcome, strict=True):
        call(error)
