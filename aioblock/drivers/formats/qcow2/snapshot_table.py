"""The table of internal snapshots: entries of no fixed length, one after the other, each beginning at a multiple of 8.

byte  0 -  7   offset of the L1 table           32 - 35   length of the VM state, bytes
      8 - 11   entries of the L1 table          36 - 39   length of the extra data
     12 - 13   length of the id                 40 - ...  extra data:  0 -  7  length of the VM state
     14 - 15   length of the name                                      8 - 15  size of the disk
     16 - 19   date, seconds                                          16 - 23  instructions executed, all ones: unknown
     20 - 23   date, nanoseconds                then      id, name
     24 - 31   time that the guest had run, ns
"""

import asyncio
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import CorruptImage

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["SnapshotEntry", "completed", "next_id", "read_snapshot_table", "snapshot_table_to_bytes", "table_length"]

MAX_EXTRA_DATA: Final = 1024
MAX_TABLE_BYTES: Final = 1024 * 65536
MAX_NAME: Final = 65535
EXTRA_DATA_OF_V3: Final = 16
"""From version 3 on an entry has at least the length of the VM state and the size of the disk in its extra data."""

_FIXED: Final = struct.Struct(">QIHHIIQII")
_EXTRA: Final = struct.Struct(">QQQ")
UNKNOWN_ICOUNT: Final = (1 << 64) - 1
_READ_AT_ONCE: Final = 64 << 10
TURNS: Final = 1024
"""How many entries go by before others get a turn."""


@dataclass(slots=True)
class SnapshotEntry:
    """One internal snapshot. Id and name are bytes of any kind; sizes and offsets in bytes."""

    l1_table_offset: int
    l1_size: int
    date_sec: int
    date_nsec: int
    vm_clock_nsec: int
    vm_state_size: int
    extra_data: bytes
    id: bytes
    name: bytes

    @property
    def disk_size(self) -> int | None:
        """Size of the disk when the snapshot was made; None: the size that the image has."""
        return int.from_bytes(self.extra_data[8:16], "big") if len(self.extra_data) >= 16 else None

    @property
    def icount(self) -> int | None:
        """How many instructions the guest had executed; None: unknown."""
        count = int.from_bytes(self.extra_data[16:24], "big") if len(self.extra_data) >= 24 else UNKNOWN_ICOUNT
        return None if count == UNKNOWN_ICOUNT else count

    @property
    def stored_length(self) -> int:
        """Bytes in the table, without the padding behind."""
        return _FIXED.size + len(self.extra_data) + len(self.id) + len(self.name)


def extra_data(vm_state_size: int, disk_size: int, icount: int | None) -> bytes:
    """The extra data of an entry, as far as it is known what it means."""
    return _EXTRA.pack(vm_state_size, disk_size, UNKNOWN_ICOUNT if icount is None else icount)


def completed(entry: SnapshotEntry, disk_size: int) -> SnapshotEntry:
    """The entry with all extra data that is known, and what it has of unknown extra data. `disk_size`: of the image."""
    size = disk_size if entry.disk_size is None else entry.disk_size
    known = extra_data(entry.vm_state_size, size, entry.icount)
    return replace(entry, extra_data=known + entry.extra_data[len(known) :])


def next_id(entries: Iterable[SnapshotEntry]) -> bytes:
    """The number behind the highest that is an id, or begins one."""
    numbers = (re.match(rb"\d+", entry.id) for entry in entries)
    return b"%d" % (max((int(found[0]) for found in numbers if found), default=0) + 1)


def table_length(entries: Iterable[SnapshotEntry]) -> int:
    """Bytes of the table that holds the entries."""
    at = 0
    for entry in entries:
        at += -at % 8 + entry.stored_length
    return at


def snapshot_table_to_bytes(entries: Iterable[SnapshotEntry]) -> bytes:
    """The reverse of `read_snapshot_table`. The VM state size stands in the extra data too, where there is any."""
    table = bytearray()
    for entry in entries:
        table += bytes(-len(table) % 8)
        table += _FIXED.pack(
            entry.l1_table_offset,
            entry.l1_size,
            len(entry.id),
            len(entry.name),
            entry.date_sec,
            entry.date_nsec,
            entry.vm_clock_nsec,
            entry.vm_state_size if entry.vm_state_size < 1 << 32 else 0,
            len(entry.extra_data),
        )
        table += entry.extra_data + entry.id + entry.name
    return bytes(table)


async def read_snapshot_table(file: "BlockIO", header: "Header") -> tuple[list[SnapshotEntry], int]:
    """All entries in order, and the length of the table in bytes. What lies behind the end of the file is zero.

    Raises: CorruptImage, with `offset` set; OSError.
    """
    reader = _Reader(file, header.snapshots_offset)
    entries: list[SnapshotEntry] = []
    for number in range(header.nb_snapshots):
        if number % TURNS == TURNS - 1:
            await asyncio.sleep(0)
        await reader.align()
        (l1_offset, l1_size, id_size, name_size, sec, nsec, clock, state_size, extra_size) = _FIXED.unpack(
            await reader.take(_FIXED.size)
        )
        if extra_size > MAX_EXTRA_DATA:
            raise CorruptImage(
                f"Too much extra metadata in snapshot table entry {number}\n"
                "You can force-remove this extra metadata with qemu-img check -r all",
                offset=reader.offset,
            )
        extra = await reader.take(extra_size)
        if len(extra) >= 8:
            state_size = int.from_bytes(extra[:8], "big")
        name = await reader.take(id_size + name_size)
        entries.append(
            SnapshotEntry(l1_offset, l1_size, sec, nsec, clock, state_size, extra, name[:id_size], name[id_size:])
        )
        if reader.offset - header.snapshots_offset > MAX_TABLE_BYTES:
            raise CorruptImage(
                "Snapshot table is too big\n"
                f"You can force-remove all {header.nb_snapshots - number} overhanging snapshots"
                " with qemu-img check -r all",
                offset=reader.offset,
            )
    return entries, reader.offset - header.snapshots_offset


def incomplete_entries(entries: list[SnapshotEntry], version: int) -> Iterator[int]:
    """The numbers of the entries that lack the extra data which their version asks for."""
    for number, entry in enumerate(entries):
        if version >= 3 and len(entry.extra_data) < EXTRA_DATA_OF_V3:
            yield number


class _Reader:
    """Takes bytes one after the other, and reads them in larger pieces."""

    def __init__(self, file: "BlockIO", offset: int) -> None:
        self.file = file
        self.start = self.offset = offset
        self.buffer = b""

    async def take(self, nbytes: int) -> bytes:
        at = self.offset - self.start
        if at + nbytes > len(self.buffer):
            self.start, at = self.offset, 0
            self.buffer = bytes(await self.file.pread(self.offset, max(nbytes, _READ_AT_ONCE)))
        self.offset += nbytes
        return self.buffer[at : at + nbytes]

    async def align(self) -> None:
        await self.take(-self.offset % 8)
