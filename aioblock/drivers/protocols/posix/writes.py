"""Small buffered writes, many in one call of a thread.

A hop to a thread and back costs more than a small write to the page cache, and the kernel lets one buffered write at a
time into a file anyway. So while a thread writes, whatever else comes is collected, and goes to the next one together.
"""

import asyncio
from collections import deque
from concurrent.futures import Future
from typing import Final

from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.transfer import write_fully

__all__ = ["SMALL", "SmallWrites"]

SMALL: Final = 1 << 16  # bytes; longer writes get a call of their own
_BATCH: Final = 64  # writes that go together: the first one waits for the last

_Write = tuple[int, memoryview, "asyncio.Future[None]"]


class SmallWrites:
    """The small writes of one descriptor."""

    __slots__ = ("_descriptor", "_running", "_waiting")

    def __init__(self, descriptor: Descriptor) -> None:
        self._descriptor = descriptor
        self._waiting: deque[_Write] = deque()
        self._running = False

    def __repr__(self) -> str:
        return f"SmallWrites(waiting={len(self._waiting)}, running={self._running})"

    def write(self, offset: int, data: memoryview) -> "asyncio.Future[None]":
        """Write all of `data`. A cancelled write happens, or not at all where no thread has it yet."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((offset, data, done))
        if not self._running:
            self._start()
        return done

    def _start(self) -> None:
        batch: list[_Write] = []
        while self._waiting and len(batch) < _BATCH:
            write = self._waiting.popleft()
            if not write[2].cancelled():
                batch.append(write)
        self._running = bool(batch)
        if not batch:
            return
        fd = self._descriptor.fd
        loop = asyncio.get_running_loop()

        def ended(job: "Future[list[Exception | None]]") -> None:
            try:
                loop.call_soon_threadsafe(self._ended, batch, job)
            except RuntimeError:  # the loop is closed: nobody waits any more
                pass

        self._descriptor.submit(lambda: _write_all(fd, batch)).add_done_callback(ended)

    def _ended(self, batch: list[_Write], job: "Future[list[Exception | None]]") -> None:
        for (_, _, done), error in zip(batch, job.result(), strict=True):
            if done.done():  # cancelled meanwhile
                continue
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)
        self._start()


def _write_all(fd: int, batch: list[_Write]) -> list[Exception | None]:
    """Each write, and what became of it: one that fails does not hinder the others."""
    outcome: list[Exception | None] = []
    for offset, data, _ in batch:
        try:
            write_fully(fd, offset, data)
        except Exception as error:
            outcome.append(error)
        else:
            outcome.append(None)
    return outcome
