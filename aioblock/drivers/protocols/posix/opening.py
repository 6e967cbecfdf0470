"""Opening a path in the host's file system without being caught by what it turns out to be."""

import asyncio
import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import Future
from typing import NamedTuple

from aioblock.base.errors import OptionError, with_context
from aioblock.drivers.protocols.posix.aligned import direct_alignment
from aioblock.drivers.protocols.posix.descriptor import Descriptor
from aioblock.drivers.protocols.posix.locks import ImageLocks
from aioblock.drivers.protocols.posix.native import NativeAio
from aioblock.drivers.protocols.posix.threads import OPENING, DevicePools

__all__ = ["OpenFile", "Target", "identity_of", "open_file"]


class Target(NamedTuple):
    """What is to be opened, and how."""

    path: str
    """The path for open(2)."""
    filename: str
    """The name in messages."""
    accepts: Callable[[int], bool]
    """Whether a file of such a `st_mode` is one for this driver."""
    refusal: str
    """The message for one that is not."""
    read_only: bool
    direct: bool
    aio: str | None = None
    """threads, native or io_uring; None: what is best here."""
    identity: object = None
    """What it must be (`identity_of`), for who opens it again."""


class OpenFile(NamedTuple):
    """An open file."""

    descriptor: Descriptor
    stat: os.stat_result
    alignment: int
    """Of offsets and lengths, in bytes: more than 1 only with O_DIRECT."""
    lockable: bool
    """Whether its filesystem has the locks of `locks.py`."""
    native: NativeAio | None
    """What reads and writes it without threads, if anything does."""

    async def close(self) -> None:
        """Close it when nobody uses it any more, also where this is cancelled. Raises: OSError."""
        if self.native is not None:
            self.native.release()
        await self.descriptor.close()


class _Opened(NamedTuple):
    fd: int
    stat: os.stat_result
    alignment: int
    lockable: bool


def identity_of(status: os.stat_result) -> object:
    """Equal for two names of the same file or device."""
    if stat.S_ISBLK(status.st_mode) or stat.S_ISCHR(status.st_mode):
        return stat.S_IFMT(status.st_mode), status.st_rdev
    return status.st_dev, status.st_ino


async def open_file(target: Target) -> OpenFile:
    """Open a file in a thread. A FIFO, a directory or a socket is refused, and nothing waits for its other side.

    Cancelled: what was opened is closed again. Raises: OSError, with a message that names the file.
    """
    pools = DevicePools.acquire(OPENING)
    try:
        job: Future[_Opened] = pools.io.submit(_open, target)
        try:
            opened = await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(_undo)
            raise
        device = opened.stat.st_rdev if stat.S_ISBLK(opened.stat.st_mode) else opened.stat.st_dev
        descriptor = Descriptor(opened.fd, device)
        try:
            native = _native(target, device)
        except BaseException:
            await descriptor.close()
            raise
        return OpenFile(descriptor, opened.stat, opened.alignment, opened.lockable, native)
    finally:
        pools.release()


def _native(target: Target, device: int) -> NativeAio | None:
    """What O_DIRECT goes by unless threads were asked for.

    Raises, where it was asked for by name: OptionError without O_DIRECT; OSError where the kernel has none.
    """
    if not target.direct and target.aio == "native":
        reason = "aio=native was specified, but it requires cache.direct=on, which was not specified."
        raise OptionError(reason, option="aio")
    if not target.direct or target.aio == "threads":
        return None
    try:
        return NativeAio.acquire(device)
    except OSError as error:
        if target.aio != "native":
            return None
        raise with_context(error, f"Could not open '{target.filename}' with aio=native: ") from None


def _undo(job: "Future[_Opened]") -> None:
    if not job.cancelled() and job.exception() is None:
        os.close(job.result().fd)


def _open(target: Target) -> _Opened:
    flags = os.O_CLOEXEC | os.O_NONBLOCK | (os.O_RDONLY if target.read_only else os.O_RDWR)
    if target.direct:
        flags |= os.O_DIRECT
    try:
        mode = os.stat(target.path).st_mode
        if target.accepts(mode) or not (stat.S_ISCHR(mode) or stat.S_ISBLK(mode)):
            fd = os.open(target.path, flags)
        else:
            fd = -1  # a device may act when it is only opened
    except OSError as error:
        if target.direct and error.errno == errno.EINVAL:
            error.strerror = "its filesystem does not support O_DIRECT"
        raise with_context(error, f"Could not open '{target.filename}': ") from None
    if fd < 0:
        raise OSError(errno.EINVAL, target.refusal)
    try:
        status = os.fstat(fd)
        if not target.accepts(status.st_mode):
            raise OSError(errno.EINVAL, target.refusal)
        if target.identity is not None and target.identity != identity_of(status):
            raise OSError(errno.ESTALE, f"Could not open '{target.filename}' again: it is another file now")
        os.set_blocking(fd, True)
        alignment = direct_alignment(fd, status.st_blksize) if target.direct else 1
        return _Opened(fd, status, alignment, ImageLocks.supported(fd))
    except BaseException:
        os.close(fd)
        raise
