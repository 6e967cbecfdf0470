"""`file`: a regular file of the host."""

import asyncio
import errno
import os
import stat
import time
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from aioblock.base.errors import NotSupported, OptionError, with_context
from aioblock.base.flags import DATA, OFFSET_VALID, PERM_ALL, PERM_RESIZE, PERM_WRITE, REQ_MAY_UNMAP, REQ_NO_FALLBACK
from aioblock.core.images import SIZE_OPTION, CreateOption, Prealloc
from aioblock.core.io import Status, StoredData
from aioblock.drivers.protocols.posix.attributes import set_extent_size_hint, set_nocow
from aioblock.drivers.protocols.posix.driver import PosixDriver
from aioblock.drivers.protocols.posix.fallocate import Allocation, set_length
from aioblock.drivers.protocols.posix.holes import DataRun, next_run, runs
from aioblock.drivers.protocols.posix.locks import ImageLocks
from aioblock.drivers.protocols.posix.opening import OpenFile, Target
from aioblock.drivers.protocols.posix.threads import OPENING, DevicePools
from aioblock.drivers.protocols.posix.transfer import copy_range

if TYPE_CHECKING:
    from aioblock.core.extents import ExtentBatch

__all__ = ["FileDriver"]

_BATCH: Final = 1024  # runs that one call in a thread looks for
_QUICK: Final = 0.002  # seconds; a filesystem that takes longer to find a hole is asked in a thread from then on


class FileDriver(PosixDriver):
    """A regular file: it grows, has holes, and may be locked against other programs."""

    name = "file"
    can_grow = True
    refusal = "a regular file"
    supported_zero_flags = REQ_MAY_UNMAP | REQ_NO_FALLBACK
    create_options = (
        SIZE_OPTION,
        CreateOption("nocow", "bool", "Turn off copy-on-write (valid only on btrfs)"),
        CreateOption("preallocation", "str", "Preallocation mode (allowed values: off, falloc, full)"),
        CreateOption("extent_size_hint", "size", "Extent size hint for the image file, 0 to disable"),
    )

    def __init__(self, target: Target, opened: OpenFile, locks: ImageLocks | None, *, no_flush: bool) -> None:
        super().__init__(target, opened, locks, no_flush=no_flush)
        self._allocation = Allocation()
        self._data = DataRun()
        self._no_copies_from: object = None
        """The file from which the kernel last refused to copy to this one."""
        self._tells_holes = True
        self._seeks_quickly = True

    @staticmethod
    def accepts(mode: int) -> bool:
        """Only regular files: others block, have no end, or act by themselves."""
        return stat.S_ISREG(mode)

    # -- length and space --------------------------------------------------------------------------------------------

    async def getlength(self) -> int:
        """The length of the file."""
        return os.fstat(self._fd).st_size

    async def allocated_size(self) -> int | None:
        """The blocks that the file has."""
        return os.fstat(self._fd).st_blocks * 512

    def has_zero_init(self) -> bool:
        """What a regular file never got written reads as zeroes."""
        return True

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Set the length; failed: it is the old one."""
        await self._descriptor.run(_truncate, self._fd, length, prealloc, self._data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero a range by fallocate, as a hole with REQ_MAY_UNMAP. NotSupported where the filesystem cannot."""
        if not self._allocation.can_zero:
            raise NotSupported
        may_unmap = bool(flags & REQ_MAY_UNMAP)
        await self._descriptor.run(_zero, self._allocation, self._data, self._fd, offset, nbytes, may_unmap)

    async def copy_range_to(self, offset: int, data: StoredData) -> None:
        """Copy from another file, in the kernel. NotSupported for everything else."""
        source = data.driver
        if not isinstance(source, FileDriver) or source.identity == self._no_copies_from:
            raise NotSupported
        copy = partial(_copy, source._fd, data.offset, self._fd, offset, len(data), self._data)
        try:
            await self._writes.run(copy, source._descriptor)
        except NotSupported:
            self._no_copies_from = source.identity
            raise

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Make a hole. NotSupported where the filesystem has none."""
        if not self._allocation.can_punch:
            raise NotSupported
        await self._descriptor.run(_punch, self._allocation, self._data, self._fd, offset, nbytes)

    # -- status ------------------------------------------------------------------------------------------------------

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Data or hole at `offset`, from memory for the run of data found last."""
        start, end = self._data.span
        if start <= offset < end:
            return Status(DATA | OFFSET_VALID, min(nbytes, end - offset), offset)
        if not want_zero or not self._tells_holes:
            return Status(DATA | OFFSET_VALID, nbytes, offset)
        generation = self._data.generation
        begun = time.perf_counter()
        try:
            if self._seeks_quickly:
                flags, end = next_run(self._fd, offset, offset + nbytes)
                self._seeks_quickly = time.perf_counter() - begun < _QUICK
            else:
                flags, end = await self._descriptor.run(next_run, self._fd, offset, offset + nbytes)
        except OSError as error:
            self._cannot_tell(error)
            return Status(DATA | OFFSET_VALID, nbytes, offset)
        if flags == DATA:
            end = self._aligned(end)
            self._data.remember(offset, end, generation)
        return Status(flags | OFFSET_VALID, min(nbytes, end - offset), offset)

    async def extents(self, offset: int, nbytes: int, want_zero: bool) -> "ExtentBatch":
        """Up to 1,024 runs, found by one thread."""
        from aioblock.core.extents import ExtentBatch  # it brings numpy

        found = [(DATA, nbytes)]
        if want_zero and self._tells_holes:
            try:
                found = await self._descriptor.run(runs, self._fd, offset, offset + nbytes, _BATCH)
            except OSError as error:
                self._cannot_tell(error)
        answers = []
        at = offset
        for flags, pnum in found:
            answers.append(Status(flags | OFFSET_VALID, pnum, at))
            at += pnum
        return ExtentBatch.of_runs(offset, answers)

    def _aligned(self, end: int) -> int:
        """With O_DIRECT a last block that is data in part is data."""
        alignment = self.limits.request_alignment
        return end + -end % alignment

    def _cannot_tell(self, error: OSError) -> None:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise error
        self._tells_holes = False

    # -- creation ----------------------------------------------------------------------------------------------------

    @classmethod
    async def create_file(cls, filename: str, options: Mapping[str, Any]) -> None:
        """Create a regular file, or empty one that nobody uses.

        Cancelled: it goes on in its thread. Raises: OSError EAGAIN where the file is in use; OptionError; OSError.
        """
        try:
            prealloc = Prealloc(options.get("preallocation") or "off")
        except ValueError:
            raise OptionError(f"invalid parameter value: {options['preallocation']}", option="preallocation") from None
        if prealloc is Prealloc.METADATA:
            raise NotSupported("Unsupported preallocation mode: metadata")
        hint = options.get("extent_size_hint")
        pools = DevicePools.acquire(OPENING)
        try:
            job: Future[None] = pools.io.submit(
                _create,
                filename,
                options.get("size") or 0,
                prealloc,
                bool(options.get("nocow")),
                (1 << 20) if hint is None else hint,
            )
            await asyncio.wrap_future(job)
        finally:
            pools.release()


# What runs in threads. Each says at its end that data may have become a hole, whoever still waits for it.


def _truncate(fd: int, length: int, prealloc: Prealloc, data: DataRun) -> None:
    try:
        set_length(fd, length, prealloc)
    finally:
        data.forget()


def _zero(allocation: Allocation, data: DataRun, fd: int, offset: int, nbytes: int, may_unmap: bool) -> None:
    try:
        allocation.zero(fd, offset, nbytes, may_unmap)
    finally:
        data.forget()


def _copy(source: int, source_offset: int, fd: int, offset: int, nbytes: int, data: DataRun) -> None:
    try:
        copy_range(source, source_offset, fd, offset, nbytes)
    finally:
        data.forget()


def _punch(allocation: Allocation, data: DataRun, fd: int, offset: int, nbytes: int) -> None:
    try:
        allocation.punch(fd, offset, nbytes)
    finally:
        data.forget()


def _create(filename: str, size: int, prealloc: Prealloc, nocow: bool, extent_size_hint: int) -> None:
    try:
        fd = os.open(filename, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise with_context(error, f"Could not create '{filename}': ") from None
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, f"'file' driver requires '{filename}' to be {FileDriver.refusal}")
        if ImageLocks.supported(fd):
            # The locks last until the descriptor is closed.
            ImageLocks(fd, filename).change(PERM_WRITE | PERM_RESIZE, PERM_ALL & ~PERM_RESIZE)
        os.ftruncate(fd, 0)
        if nocow:
            set_nocow(fd)
        if extent_size_hint:
            set_extent_size_hint(fd, extent_size_hint)
        set_length(fd, size, prealloc)
    finally:
        os.close(fd)
