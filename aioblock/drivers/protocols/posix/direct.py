"""Reads and writes of a file with O_DIRECT: by the kernel itself where that need not wait, else by threads."""

import asyncio
import errno
import os
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING

from aioblock.drivers.protocols.posix.aligned import AlignedMemory
from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.native import LONGEST, NativeAio
from aioblock.drivers.protocols.posix.transfer import SLICE, read_fully, write_direct

if TYPE_CHECKING:
    from aioblock.core.io import Done

__all__ = ["DirectIO"]

_memory = AlignedMemory()  # of all files together, so that a thousand of them keep no more than one

# What io_submit says of a file that has no asynchronous I/O, or none that would not wait. What is really invalid is so
# for a thread, too.
_UNABLE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class DirectIO:
    """The reads and writes of one descriptor."""

    __slots__ = ("_alignment", "_descriptor", "_native")

    def __init__(self, descriptor: Descriptor, alignment: int, native: NativeAio | None) -> None:
        """`alignment` of offsets and lengths, in bytes; without `native` threads do everything."""
        self._descriptor = descriptor
        self._alignment = alignment
        self._native = native

    def __repr__(self) -> str:
        return f"DirectIO({self._descriptor!r}, native={self._native!r})"

    async def read(self, offset: int, buffer: memoryview) -> None:
        """Fill `buffer`, with zeroes where the file ends before. Cancelled: it is untouched from then on."""
        if self._native is not None and len(buffer) <= LONGEST:
            done = self._transferred(await self._native.read(self._descriptor, offset, buffer))
            if done == len(buffer):
                return
            offset, buffer = offset + done, buffer[done:]
            if done % self._alignment:  # a part of a block is the last one of the file
                buffer[:] = bytes(len(buffer))
                return
        for start in range(0, len(buffer), SLICE):
            part = buffer[start : start + SLICE]
            view = await self._descriptor.run(
                read_fully, self._descriptor.fd, offset + start, len(part), _memory, self._alignment
            )
            part[:] = view
            _memory.give(view)

    async def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`. Cancelled: it happens, or not at all where it had not begun."""
        if self._native is not None and len(data) <= LONGEST:
            done = self._transferred(await self._native.write(self._descriptor, offset, data))
            if done == len(data):
                return
            offset, data = offset + done, data[done:]
        await self._descriptor.run(write_direct, self._descriptor.fd, offset, data, _memory)

    def write_soon(self, offset: int, data: memoryview, done: "Done") -> bool:
        """As `BlockDriver.pwritev_soon`."""
        if self._native is None or len(data) > LONGEST:
            return False
        self._native.begin_write(self._descriptor, offset, data, partial(self._written, offset, data, done))
        return True

    def _written(self, offset: int, data: memoryview, done: "Done", result: int) -> None:
        """What became of one of `write_soon`: a thread does what is left of it."""
        if result == len(data):
            done(None)
            return
        try:
            count = self._transferred(result)
            rest = self._descriptor.fd, offset + count, data[count:], _memory
            job = self._descriptor.submit(partial(write_direct, *rest))
        except (OSError, ValueError) as error:  # ValueError: the file was closed, or the view released
            done(error)
        else:
            job.add_done_callback(partial(_tell, asyncio.get_running_loop(), done))

    def _transferred(self, result: int) -> int:
        """How much was done: nothing of what a thread shall do. Raises: OSError, what is a failure of the file."""
        if result >= 0:
            return result
        if -result in _UNABLE:
            self._native = None
        elif result not in (-errno.EAGAIN, -errno.EINTR):
            raise OSError(-result, os.strerror(-result))
        return 0


def _tell(loop: asyncio.AbstractEventLoop, done: "Done", job: "Future[None]") -> None:
    error = job.exception()
    assert error is None or isinstance(error, Exception)
    try:
        loop.call_soon_threadsafe(done, error)
    except RuntimeError:  # the loop is closed: nobody waits any more
        pass
