"""`raw`: the bytes of the file are the bytes of the disk, all of them or those of a range."""

import asyncio
import errno
import os
from collections.abc import AsyncIterable, Awaitable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from aioblock.base.errors import BlockError, NotSupported, OptionError
from aioblock.base.flags import OFFSET_VALID, RAW, REQ_FUA, REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_UNCHANGED
from aioblock.core.driver import BlockDriver
from aioblock.core.images import SIZE_OPTION, DriverInfo, Measurement, Prealloc, Role
from aioblock.core.io import Status
from aioblock.core.limits import BlockLimits
from aioblock.core.registry import PROBE_BYTES, probe_format

if TYPE_CHECKING:
    from aioblock.base.options import Options
    from aioblock.core.context import OpenContext
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.core.io import BlockIO, Done, StoredData

__all__ = ["RawDriver"]

_SECTOR: Final = 512
_LONGEST: Final = (1 << 63) - 1


class RawDriver(BlockDriver):
    """Passes everything through to `file`.

    An image that was only *taken* for raw, because no other format's probe knew it, is guarded: its guest must not
    make it an image of another format, which would then name files of the host. So a write that would let a probe see
    another format is refused, EPERM.
    """

    name = "raw"
    kind = "format"
    naming_options = frozenset({"offset", "size"})
    runtime_options = frozenset({"offset", "size"})
    supported_write_flags = REQ_FUA | REQ_UNCHANGED
    supported_zero_flags = REQ_MAY_UNMAP | REQ_FUA | REQ_NO_FALLBACK
    create_options = (SIZE_OPTION,)

    def __init__(self, file: "BlockIO", *, probed: bool = False) -> None:
        self.file = file
        self._offset = 0
        self._size: int | None = None
        self._probed = probed
        self._head = asyncio.Lock()  # held while the first bytes of a probed image are looked at and changed
        self.limits = BlockLimits()
        self.debugger = file.node.debugger

    def __repr__(self) -> str:
        where = "" if not self._offset and self._size is None else f" offset={self._offset} size={self._size}"
        return f"<RawDriver{where}{' probed' if self._probed else ''}>"

    # -- open and create ---------------------------------------------------------------------------------------------

    @classmethod
    def probe(cls, head: bytes, filename: str) -> int:
        """Everything can be a raw image, and anything else is more likely."""
        return 1

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `offset` and `size`, the range of the file that is the disk; without `size` up to the file's end."""
        given = [context.options.take_size(name, None) for name in ("offset", "size")]
        file = await context.open_child(Role.FILE)
        driver = cls(file, probed=context.probed)
        driver._set_range(*given)
        return driver

    def change_options(self, options: "Options", *, unmap: bool) -> None:
        """Take another `offset` and `size`."""
        self._set_range(options.take_size("offset", None), options.take_size("size", None))

    def _set_range(self, offset: int | None, size: int | None) -> None:
        real = self.file.length
        if offset is not None and offset > real:
            raise OptionError(
                f"Offset ({offset}) cannot be greater than size of the containing file ({real})", option="offset"
            )
        if size is not None:
            if real - (offset or 0) < size:
                raise OptionError(
                    f"The sum of offset ({offset or 0}) and size ({size}) has to be smaller or equal to the "
                    f" actual size of the containing file ({real})",
                    option="size",
                )
            if size % _SECTOR:
                raise OptionError("Specified size is not multiple of 512", option="size")
        self._offset, self._size = offset or 0, size

    @classmethod
    async def create(cls, file: "BlockIO", options: Mapping[str, Any]) -> None:
        """An empty raw image is a file of that length."""
        await file.truncate(options.get("size") or 0, exact=False)

    @classmethod
    async def measure(
        cls,
        options: Mapping[str, Any],
        size: int,
        data: AsyncIterable[tuple[int, int]] | None,
        bitmaps: "Iterable[DirtyBitmap] | None",
    ) -> Measurement:
        """As long as the disk, in whole sectors, wherever its data is."""
        nbytes = -(-size // _SECTOR) * _SECTOR
        return Measurement(nbytes, nbytes, None)

    async def close(self) -> None:
        """Nothing of its own to give up."""

    async def getlength(self) -> int:
        """The length of the range."""
        return self.file.length - self._offset if self._size is None else self._size

    def info(self) -> DriverInfo:
        """There is nothing to tell."""
        return DriverInfo(dirty=self.file.node.driver.info().dirty)

    def has_zero_init(self) -> bool:
        """As the file."""
        return self.file.node.driver.has_zero_init()

    # -- data: the child's awaitables are returned as they are, one coroutine less on the way ------------------------

    def preadv_now(self, offset: int, buffer: memoryview) -> bool:
        """Read from the file, if that can do it now."""
        return self.file.readinto_now(offset + self._offset, buffer)

    def preadv(self, offset: int, buffer: memoryview, flags: int) -> Awaitable[None]:
        """Read from the file."""
        return self.file.readinto(offset + self._offset, buffer, flags)

    def pwritev_soon(self, offset: int, data: memoryview, done: "Done") -> bool:
        """Write to the file, if that takes it at once."""
        if self._probed and offset < PROBE_BYTES:
            return False
        return self.file.pwrite_soon(offset + self._offset, data, done)

    def pwritev(self, offset: int, data: memoryview, flags: int) -> Awaitable[None]:
        """Write to the file."""
        if self._probed and offset < PROBE_BYTES:
            return self._write_head(offset, data, flags)
        return self.file.pwrite(offset + self._offset, data, flags)

    def copy_range_from(
        self, offset: int, nbytes: int, target: "BlockIO", target_offset: int, flags: int
    ) -> Awaitable[None]:
        """Copy out of the file."""
        return self.file.copy_range(offset + self._offset, nbytes, target, target_offset, flags)

    def copy_range_to(self, offset: int, data: "StoredData") -> Awaitable[None]:
        """Copy into the file; not into the first bytes of a guarded image, which are to be looked at."""
        if self._probed and offset < PROBE_BYTES:
            raise NotSupported
        return self.file.pwrite_stored(offset + self._offset, data)

    def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> Awaitable[None]:
        """Zero in the file."""
        if self._probed and offset < PROBE_BYTES:
            return self._zero_head(offset, nbytes, flags)
        return self.file.pwrite_zeroes(offset + self._offset, nbytes, flags)

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Discard in the file; not in the first bytes of a guarded image."""
        if self._probed and offset < PROBE_BYTES:
            nbytes -= PROBE_BYTES - offset
            offset = PROBE_BYTES
        if nbytes > 0:
            await self.file.pdiscard(offset + self._offset, nbytes)

    async def truncate(self, length: int, *, exact: bool, prealloc: Prealloc, flags: int) -> None:
        """Set the length of the file. NotSupported where `size` fixes it."""
        if self._size is not None:
            raise NotSupported("Cannot resize fixed-size raw disks")
        if length > _LONGEST - self._offset:
            raise OSError(errno.EINVAL, "Disk size too large for the chosen offset")
        await self.file.truncate(length + self._offset, exact=exact, prealloc=prealloc, flags=flags)

    async def block_status(self, offset: int, nbytes: int, want_zero: bool) -> Status:
        """Whatever the file says."""
        return Status(RAW | OFFSET_VALID, nbytes, offset + self._offset, self.file)

    # -- the guard of probed images ----------------------------------------------------------------------------------

    async def _write_head(self, offset: int, data: memoryview, flags: int) -> None:
        async with self._head:
            await self._check_head(offset, data[: PROBE_BYTES - offset])
            await self.file.pwrite(offset + self._offset, data, flags)

    async def _zero_head(self, offset: int, nbytes: int, flags: int) -> None:
        async with self._head:
            await self._check_head(offset, memoryview(bytes(min(nbytes, PROBE_BYTES - offset))))
            await self.file.pwrite_zeroes(offset + self._offset, nbytes, flags)

    async def _check_head(self, offset: int, data: memoryview) -> None:
        head = await self.file.pread(self._offset, min(PROBE_BYTES, max(self.file.length, offset + len(data))))
        head[offset : offset + len(data)] = data
        try:
            found = probe_format(bytes(head), "").name
        except BlockError:  # two formats claim it
            found = ""
        if found != self.name:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
