"""`aio=native`: reads and writes with O_DIRECT that need no thread.

What is asked in one turn of the event loop goes to the kernel in one call, and what is done is fetched in calls of a
few, because the device waits for those who are woken: 4 KiB reads, 64 at a time, take 14 us each when 16 are fetched at
a time, 20 us when all are (virtio disk, Linux 6.18).

The kernel transfers from and to memory of the engine, which is copied: it goes on where an awaiter is cancelled, and
must not write where its caller has something else by now; and O_DIRECT wants memory that is aligned.

An engine serves all files of one device that are open on one event loop, so that a thousand images cost one context of
the kernel, and a device that hangs holds up its own files only.
"""

import asyncio
import ctypes
import errno
import mmap
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.kernel_aio import READ, WRITE, KernelAio
from aioblock.drivers.protocols.posix.threads import DevicePools

__all__ = ["LONGEST", "NativeAio"]

DEPTH: Final = 128
"""What the kernel has at a time. A device's queue is rarely longer; it refuses with EAGAIN then."""
BATCH: Final = 16
"""How many are fetched at most before those who waited for them ask for more."""
SHARE: Final = 4
"""And one of so many that run: the device has the others meanwhile."""
LONGEST: Final = 1 << 18
"""Bytes of one operation. With 64 KiB it takes a fifth of the processor time that threads take, and 0.6 of the time as
a whole (16 at a time); with 1 MiB threads are as fast, and the loop shall not copy that."""

_Waiter = asyncio.Future[int] | None
"""Who waits, and may have been cancelled."""
_Operation = tuple[int, Descriptor, int, memoryview, Callable[[int], None], _Waiter]

_kernel_aio: Callable[[int, int], KernelAio] = KernelAio

_lock = threading.Lock()  # guards `_engines`; nothing else is locked inside
_engines: "dict[tuple[asyncio.AbstractEventLoop, int], NativeAio]" = {}


def _forget_parent() -> None:
    """In the child of a fork: the kernel's contexts are the parent's."""
    global _lock
    _lock = threading.Lock()
    _engines.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_parent)


class NativeAio:
    """The asynchronous operations of one event loop on one device. `acquire` and `release` count the files."""

    __slots__ = (
        "_address", "_eventfd", "_free", "_kernel", "_key", "_loop", "_memory", "_pools", "_running", "_scheduled",
        "_users", "_views", "_waiting",
    )  # fmt: skip

    def __init__(self, loop: asyncio.AbstractEventLoop, device: int) -> None:
        """Raises: OSError, where the kernel gives none."""
        self._loop = loop
        self._key = loop, device
        self._users = 0
        self._memory = mmap.mmap(-1, DEPTH * LONGEST)  # takes only as much as is touched
        self._eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            self._kernel = _kernel_aio(DEPTH, self._eventfd)
        except BaseException:
            os.close(self._eventfd)
            raise
        self._address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        whole = memoryview(self._memory)
        self._views = [whole[at : at + LONGEST] for at in range(0, len(whole), LONGEST)]
        self._free = list(range(DEPTH))
        self._running: list[_Operation | None] = [None] * DEPTH
        self._waiting: deque[_Operation] = deque()
        self._scheduled = False
        self._pools = DevicePools.acquire(device)
        loop.add_reader(self._eventfd, self._told)

    def __repr__(self) -> str:
        return f"NativeAio(users={self._users}, running={DEPTH - len(self._free)}, waiting={len(self._waiting)})"

    @classmethod
    def acquire(cls, device: int) -> "NativeAio":
        """The engine of the running loop for a device (`st_dev`), made where nobody uses it yet.

        Engines of loops that were closed meanwhile are given up.
        Raises: OSError (ENOSYS, EAGAIN, EPERM) where the kernel gives none.
        """
        loop = asyncio.get_running_loop()
        with _lock:
            left = [engine for engine in _engines.values() if engine._loop.is_closed()]
            for engine in left:
                del _engines[engine._key]
            found = _engines.get((loop, device))
        for engine in left:
            engine._end()
        if found is None:
            found = cls(loop, device)
            with _lock:
                _engines[found._key] = found
        found._users += 1
        return found

    def release(self) -> None:
        """One file less. With the last one the engine ends, when what is under way is done."""
        self._users -= 1
        self._end_unused()

    # -- operations --------------------------------------------------------------------------------------------------

    def read(self, descriptor: Descriptor, offset: int, buffer: memoryview) -> "asyncio.Future[int]":
        """Fill `buffer`, no longer than LONGEST: how many bytes came, or a negative errno. Cancelled: it is untouched.

        -EAGAIN: it would have to wait, a thread shall do it.
        """
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._begin((READ, descriptor, offset, buffer, waiter.set_result, waiter))
        return waiter

    def write(self, descriptor: Descriptor, offset: int, data: memoryview) -> "asyncio.Future[int]":
        """Write `data`, no longer than LONGEST: as `read`. Cancelled: it happens, or not at all."""
        waiter: asyncio.Future[int] = self._loop.create_future()
        self._begin((WRITE, descriptor, offset, data, waiter.set_result, waiter))
        return waiter

    def begin_write(self, descriptor: Descriptor, offset: int, data: memoryview, done: Callable[[int], None]) -> None:
        """As `write`, for who does not wait: `done` is called with the result."""
        self._begin((WRITE, descriptor, offset, data, done, None))

    def _begin(self, operation: _Operation) -> None:
        operation[1].begin()
        self._waiting.append(operation)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._submit)  # together with what else this turn of the loop brings

    def _submit(self) -> None:
        self._scheduled = False
        waiting, free, prepare = self._waiting, self._free, self._kernel.prepare
        numbers = []
        while waiting and free:
            operation = waiting.popleft()
            opcode, descriptor, offset, view, _, waiter = operation
            if waiter is not None and waiter.done():  # cancelled before it began
                descriptor.end()
                continue
            number = free.pop()
            self._running[number] = operation
            try:
                nbytes = len(view)
                if opcode == WRITE:
                    self._views[number][:nbytes] = view
            except ValueError:  # the view was released
                self._ended(number, -errno.EFAULT)
                continue
            prepare(number, opcode, descriptor.fd, self._address + number * LONGEST, nbytes, offset)
            numbers.append(number)
        while numbers:
            try:
                begun = self._kernel.submit(numbers)
            except OSError as error:  # about the first one
                self._ended(numbers[0], -(error.errno or errno.EIO))
                begun = 1
            del numbers[:begun]
        self._end_unused()

    def _told(self) -> None:
        """The kernel says that some are done."""
        try:
            os.eventfd_read(self._eventfd)
        except BlockingIOError:  # what it told of was fetched before
            pass
        self._fetch()

    def _fetch(self) -> None:
        if len(self._free) == DEPTH:  # nothing runs; perhaps the context is gone
            return
        most = min(max((DEPTH - len(self._free)) // SHARE, 1), BATCH)
        completed = self._kernel.completed(most)
        for number, result in completed:
            self._ended(number, result)
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._submit)  # after the tasks that were woken: they ask for more
        if len(completed) == most and len(self._free) < DEPTH:
            self._loop.call_soon(self._fetch)

    def _ended(self, number: int, result: int) -> None:
        operation, self._running[number] = self._running[number], None
        assert operation is not None
        opcode, descriptor, _, buffer, done, waiter = operation
        self._free.append(number)
        if waiter is None or not waiter.done():
            if opcode == READ and result > 0:
                try:
                    buffer[:result] = self._views[number][:result]
                except ValueError:  # the view was released
                    result = -errno.EFAULT
            done(result)
        descriptor.end()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _end_unused(self) -> None:
        if self._users or self._waiting or len(self._free) < DEPTH:
            return
        with _lock:
            if _engines.get(self._key) is not self:  # it has ended
                return
            del _engines[self._key]
        if not self._loop.is_closed():
            self._loop.remove_reader(self._eventfd)
        self._end()

    def _end(self) -> None:
        os.close(self._eventfd)
        self._pools.sync.submit(self._close)
        self._pools.release()

    def _close(self) -> None:
        """In a thread. Where the loop was closed with operations under way, their files are given up here."""
        self._kernel.close()
        for operation in (*self._running, *self._waiting):
            if operation is not None:
                operation[1].end()
