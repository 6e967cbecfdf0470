"""`blklogwrites`: every write, discard and flush of a file is recorded, in the order of their completion.

The log has the format of Linux' dm-log-writes (Documentation/admin-guide/device-mapper/log-writes.rst); all numbers are
little-endian, and everything begins at a multiple of the sector size:

    super block   magic 0x6a736677736872 (8), version 1 (8), number of entries (8), sector size (4)
    entry         sector (8), number of sectors (8), flags (8), length of further data (8); then the data written
"""

import asyncio
import struct
from typing import TYPE_CHECKING, ClassVar, Final, Self

from aioblock.base.errors import NotSupported, OptionError
from aioblock.base.flags import REQ_MAY_UNMAP, REQ_NO_FALLBACK, REQ_UNCHANGED
from aioblock.core.filter import FilterDriver
from aioblock.core.images import Role
from aioblock.core.limits import BlockLimits

if TYPE_CHECKING:
    from aioblock.core.context import OpenContext
    from aioblock.core.io import BlockIO

__all__ = ["BlklogwritesDriver"]

_SUPER: Final = struct.Struct("<QQQI")
_ENTRY: Final = struct.Struct("<QQQQ")
_MAGIC: Final = 0x6A736677736872
_VERSION: Final = 1
_FLUSH: Final = 1
_DISCARD: Final = 4
_SECTOR: Final = 512
_MAX_SECTOR: Final = 8 << 20
_INTERVAL: Final = 4096


class _Log:
    """The log: appends entries, one at a time."""

    def __init__(self, file: "BlockIO", sector: int, interval: int, entries: int = 0, position: int = 1) -> None:
        self.file = file
        self.sector = sector
        self.interval = interval
        self.entries = entries
        self._position = position
        """The sector behind the last entry."""
        self._turn = asyncio.Lock()

    async def append(self, offset: int, nbytes: int, flags: int, data: "memoryview | None" = None) -> None:
        """Record a request. `data` None with a length: zeroes, unless it is a discard. Raises: OSError."""
        async with self._turn:
            sector = self.sector
            count = -(-nbytes // sector)
            entry = _ENTRY.pack(offset // sector, count, flags, 0).ljust(sector, b"\0")
            at = self._position * sector
            if data is not None:
                await self.file.pwrite(at, entry + bytes(data).ljust(count * sector, b"\0"))
            else:
                await self.file.pwrite(at, entry)
            stored = 0 if flags & _DISCARD else count
            if data is None and stored:
                await self.file.pwrite_zeroes(at + sector, stored * sector)
            self._position += 1 + stored
            self.entries += 1
            if flags & _FLUSH or self.entries % self.interval == 0:
                await self._write_super()

    async def _write_super(self) -> None:
        block = _SUPER.pack(_MAGIC, _VERSION, self.entries, self.sector)
        await self.file.pwrite(0, block.ljust(self.sector, b"\0"))


class BlklogwritesDriver(FilterDriver):
    """Does every request, and then writes it down. An entry that cannot be written fails the request."""

    name: ClassVar[str] = "blklogwrites"
    naming_options: ClassVar[frozenset[str]] = frozenset({"log-append", "log-sector-size", "log-super-update-interval"})
    # FUA is the flush behind a write: that is recorded.
    supported_write_flags: int = REQ_UNCHANGED
    supported_zero_flags: int = REQ_MAY_UNMAP | REQ_NO_FALLBACK

    def __init__(self, file: "BlockIO", log: _Log) -> None:
        super().__init__(file)
        self.limits = BlockLimits(request_alignment=log.sector)
        self._log = log

    def __repr__(self) -> str:
        return f"<BlklogwritesDriver entries={self._log.entries} sector={self._log.sector}>"

    @classmethod
    async def open(cls, context: "OpenContext") -> Self:
        """Options: `file`; `log`; `log-sector-size`, a power of two from 32 bytes to 8 MiB, 512 by default;
        `log-append`, go on behind the entries that are there; `log-super-update-interval`, after how many entries
        without a flush the super block is written, 4096 by default.
        """
        options = context.options
        file = await context.open_child(Role.FILE)
        log = await context.open_child(Role.LOG)
        interval = options.take_int("log-super-update-interval", _INTERVAL)
        append = options.take_bool("log-append")
        given = options.take_size("log-sector-size", None)
        if append and given is not None:
            raise OptionError("log-append and log-sector-size are mutually exclusive", option="log-append")
        if interval <= 0:
            raise OptionError(f"Invalid log superblock update interval {interval}", option="log-super-update-interval")
        sector = _SECTOR if given is None else given
        if not _is_sector_size(sector):
            raise OptionError(f"Invalid log sector size {sector}", option="log-sector-size")
        made = await _find_end(log, interval) if append and log.length else _Log(log, sector, interval)
        if not context.read_only and file.length % made.sector:
            raise OptionError(
                "Cannot get 'write' permission without 'resize': Image size is not a multiple of request alignment"
            )
        return cls(file, made)

    async def pwritev(self, offset: int, data: memoryview, flags: int) -> None:
        """Write, and record it."""
        await self.file.pwrite(offset, data, flags)
        await self._log.append(offset, len(data), 0, data)

    async def pwrite_zeroes(self, offset: int, nbytes: int, flags: int) -> None:
        """Zero, and record it as a write of zeroes."""
        await self.file.pwrite_zeroes(offset, nbytes, flags)
        await self._log.append(offset, nbytes, 0)

    async def pwritev_compressed(self, offset: int, data: memoryview) -> None:
        """What is stored then could not be told from the log."""
        raise NotSupported

    async def pdiscard(self, offset: int, nbytes: int) -> None:
        """Discard, and record it."""
        await self.file.pdiscard(offset, nbytes)
        await self._log.append(offset, nbytes, _DISCARD)

    async def flush(self) -> None:
        """Flush the file, and record it; the generic code then flushes the log."""
        await self.file.flush()
        await self._log.append(0, 0, _FLUSH)


def _is_sector_size(value: int) -> bool:
    return _SUPER.size <= value <= _MAX_SECTOR and not value & (value - 1)


async def _find_end(file: "BlockIO", interval: int) -> _Log:
    """The log as it is, to be written on behind its last entry. Raises: OptionError, OSError."""
    magic, version, entries, sector = _SUPER.unpack(await file.pread(0, _SUPER.size))
    if magic != _MAGIC:
        raise OptionError("Invalid log superblock magic")
    if version != _VERSION:
        raise OptionError(f"Unsupported log version {version}")
    if not _is_sector_size(sector):
        raise OptionError(f"Invalid log sector size {sector}")
    position = 1
    for number in range(entries):
        if (position + 1) * sector > file.length:
            raise OptionError(f"The log ends before its entry {number}")
        _, count, flags, more = _ENTRY.unpack(await file.pread(position * sector, _ENTRY.size))
        position += 1 + -(-more // sector) + (0 if flags & _DISCARD else count)
        if not number % 1024:
            await asyncio.sleep(0)
    return _Log(file, sector, interval, entries, position)
