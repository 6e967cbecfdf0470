"""What `file` and `host_device` have in common: a descriptor of the host, read and written at offsets.

Data in the page cache is read on the event loop, by a call that refuses to wait (RWF_NOWAIT); all else is read and
written in threads, and with O_DIRECT as `direct` says. A read in a thread goes to memory of its own, which is copied
when it is done: the thread of a cancelled read goes on, and must not write where its caller has something else by now.

After `reopen` the driver has another Descriptor; a job keeps the one it began with.
"""

import asyncio
import errno
import os
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import PERM_ALL
from aioblock.core.context import AIO_MODES
from aioblock.core.driver import BlockDriver
from aioblock.core.images import DriverInfo
from aioblock.core.limits import BlockLimits
from aioblock.drivers.protocols.posix.aligned import AlignedMemory
from aioblock.drivers.protocols.posix.direct import DirectIO
from aioblock.drivers.protocols.posix.locks import ImageLocks
from aioblock.drivers.protocols.posix.opening import OpenFile, Target, identity_of, open_file
from aioblock.drivers.protocols.posix.transfer import SLICE, read_fully
from aioblock.drivers.protocols.posix.writes import SMALL, Writes

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import Done

__all__ = ["PosixDriver"]

_memory = AlignedMemory()  # of all files together, so that a thousand of them keep no more than one
_preadv: Callable[..., int] = os.preadv
_pwritev: Callable[..., int] = os.pwritev
_NOWAIT: Final[int] = getattr(os, "RWF_NOWAIT", 0)


class PosixDriver(BlockDriver):
    """A protocol driver over one file descriptor. Its children say what kinds of file they take."""

    kind = "protocol"
    refusal: ClassVar[str]
    """What the driver requires, for the message: "a regular file"."""

    def __init__(self, target: Target, opened: OpenFile, locks: ImageLocks | None, *, no_flush: bool) -> None:
        self.filename = target.filename
        self._target = target
        self._locks = locks
        self._no_flush = no_flush
        self._adopt(target, opened)

    def _adopt(self, target: Target, opened: OpenFile) -> None:
        self._target = target
        self._opened = opened
        self._descriptor = opened.descriptor
        self._fd = opened.descriptor.fd
        self._writes = Writes(opened.descriptor)
        self._direct = DirectIO(opened.descriptor, opened.alignment, opened.native) if target.direct else None
        # What the filesystem refuses is remembered; O_DIRECT has nothing that would be there without waiting.
        self._read_inline = self._write_inline = bool(_NOWAIT) and not target.direct
        self.identity = identity_of(opened.stat)
        self.limits = BlockLimits(request_alignment=opened.alignment)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.filename!r} {self._descriptor!r}>"

    # -- open, reopen, close -----------------------------------------------------------------------------------------

    @staticmethod
    @abstractmethod
    def accepts(mode: int) -> bool:
        """Whether a file of such a `st_mode` is one for this driver."""

    @classmethod
    def _target_of(cls, filename: str, *, read_only: bool, direct: bool, aio: str | None = None) -> Target:
        refusal = f"'{cls.name}' driver requires '{filename}' to be {cls.refusal}"
        return Target(filename, filename, cls.accepts, refusal, read_only, direct, aio)

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Open the file.

        Options: `filename`; `locking` (on, off, auto: where the filesystem can); `aio`, how the system is asked for I/O
        with O_DIRECT: `native` (the kernel's asynchronous I/O, refused where there is none) or `threads`; without it,
        and for `io_uring`, native where there is one. `drop-cache` is taken and has no effect: it matters to migration
        alone.
        """
        options = context.options
        filename = options.take_str("filename", "")
        if not filename:
            raise OptionError(f"The '{cls.name}' block driver requires a file name", option="filename")
        locking = options.take_choice("locking", ("on", "off", "auto"), "auto")
        aio = options.take_choice("aio", AIO_MODES, "") if "aio" in options else context.aio
        options.take_bool("drop-cache", True)
        if options.take_bool("x-check-cache-dropped", False):
            raise NotSupported("x-check-cache-dropped=on is not supported")
        target = cls._target_of(filename, read_only=context.read_only, direct=context.cache.direct, aio=aio)
        opened = await open_file(target)
        try:
            if locking == "on" and not opened.lockable:
                raise NotSupported(f"locking=on, but the filesystem of '{filename}' has no OFD locks")
            locks = None
            if locking != "off" and opened.lockable:
                locks = ImageLocks(opened.descriptor.fd, filename)
            return cls(target, opened, locks, no_flush=context.cache.no_flush)
        except BaseException:
            await opened.close()
            raise

    async def set_permissions(self, perm: int, shared: int) -> None:
        """From now on the users of this node do `perm`, and let others do `shared`; other processes are told by locks.

        Failed: the old ones are still in force. Cancelled: it is done or undone in the background, drain waits for it.
        Raises: OSError EAGAIN where another user of the file stands against it; OSError.
        """
        if self._locks is not None:
            await self._descriptor.run_sync(_set_locks, self._locks, perm & PERM_ALL, shared & PERM_ALL)

    async def reopen(self, *, read_only: bool, direct: bool, no_flush: bool) -> None:
        """Open the same file again in another mode, with the same locks, and go on with that one."""
        old = self._opened
        target = self._target._replace(
            path=_path_of(self._fd) or self._target.filename,
            read_only=read_only,
            direct=direct,
            identity=self.identity,
        )
        opened = await open_file(target)
        try:
            if self._locks is not None:
                self._locks = await old.descriptor.run_sync(_copy_locks, self._locks, opened.descriptor.fd)
        except BaseException:
            await opened.close()
            raise
        self._adopt(target, opened)
        self._no_flush = no_flush
        try:
            await old.close()
        except OSError:  # it was flushed; the file is in use by the other descriptor, and this one is gone anyway
            pass

    async def close(self) -> None:
        """Close the file when nobody uses it any more."""
        await self._opened.close()

    def info(self) -> DriverInfo:
        """A file is never dirty."""
        return DriverInfo(dirty=False)

    async def drain_begin(self) -> None:
        """Wait for what goes on of cancelled requests."""
        await self._descriptor.idle()

    # -- data --------------------------------------------------------------------------------------------------------

    def preadv_now(self, offset: int, buffer: memoryview) -> bool:
        """Fill `buffer` on the spot, if the page cache has it."""
        if self._read_inline and len(buffer) <= SLICE:
            try:
                return _preadv(self._fd, (buffer,), offset, _NOWAIT) == len(buffer)
            except OSError as error:
                self._read_inline = _goes_on(error)
        return False

    async def preadv(self, offset: int, buffer: memoryview, flags: int) -> None:
        """Fill `buffer`: on the spot where the page cache has it, else by a thread; with O_DIRECT see `direct`."""
        if self._direct is not None:
            await self._direct.read(offset, buffer)
        elif not self.preadv_now(offset, buffer):
            await self._read_in_threads(offset, buffer)

    async def _read_in_threads(self, offset: int, buffer: memoryview) -> None:
        if len(buffer) > SLICE:
            for start in range(0, len(buffer), SLICE):
                await self.preadv(offset + start, buffer[start : start + SLICE], 0)
                await asyncio.sleep(0)  # it may all have been in the page cache
            return
        view = await self._descriptor.run(read_fully, self._fd, offset, len(buffer), _memory)
        buffer[:] = view
        _memory.give(view)

    def pwritev_soon(self, offset: int, data: memoryview, done: "Done") -> bool:
        """Give a small write to the next batch for a thread, where the filesystem takes none on the spot."""
        if self._direct is not None:
            return self._direct.write_soon(offset, data, done)
        if self._write_inline or len(data) > SMALL:
            return False
        self._writes.begin(offset, data, done)
        return True

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write `data`: on the spot where the filesystem takes it without waiting, else by a thread.

        With O_DIRECT see `direct`.
        """
        if self._direct is not None:
            return await self._direct.write(offset, data)
        if self._write_inline and len(data) <= SLICE:
            try:
                done = _pwritev(self._fd, (data,), offset, _NOWAIT)
                if done == len(data):
                    return
                offset, data = offset + done, data[done:]
            except OSError as error:
                self._write_inline = _goes_on(error)
        await self._writes.write(offset, data)

    async def flush(self) -> None:
        """Put the data on stable storage. Once that has failed, it fails until the file is opened anew."""
        if not self._no_flush:
            await self._descriptor.sync()


def _goes_on(error: OSError) -> bool:
    """After a call with RWF_NOWAIT has failed: whether such calls make sense. Raises what is a failure of the file."""
    if error.errno in (errno.EAGAIN, errno.EINTR):
        return True
    if error.errno in (errno.EOPNOTSUPP, errno.ENOSYS):
        return False
    raise error


def _path_of(fd: int) -> str | None:
    path = f"/proc/self/fd/{fd}"  # the very file, whatever its name means by now
    return path if os.path.exists(path) else None


def _set_locks(locks: ImageLocks, perm: int, shared: int) -> None:
    locks.change(perm, shared)


def _copy_locks(locks: ImageLocks, fd: int) -> ImageLocks:
    return locks.copy_to(fd)
