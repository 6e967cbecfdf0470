"""The directory of the persistent bitmaps: entries of no fixed length, each padded to a multiple of 8.

    byte  0 -  7   offset of the bitmap table        17        log2 of the granularity, bytes
          8 - 11   entries of the bitmap table       18 - 19   length of the name
         12 - 15   flags: 0 in use, 1 auto,          20 - 23   length of the extra data
                   2 extra data may be ignored       24 - ...  extra data, then the name
         16        type: 1, dirty tracking

    Bitmap table entry: 63-56 reserved | 55-9 offset of a cluster | 8-1 reserved | 0 without an offset: all ones

It counts only while the autoclear bit says that it is consistent.
"""

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.base.errors import CorruptImage
from aioblock.drivers.formats.qcow2 import extensions as ext
from aioblock.drivers.formats.qcow2.features import AUTOCLEAR_BITMAPS

if TYPE_CHECKING:
    from aioblock.core.io import BlockIO
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["AUTO", "IN_USE", "BitmapEntry", "directory_bytes", "directory_entry_bytes", "read_bitmap_directory"]

IN_USE: Final = 1 << 0
AUTO: Final = 1 << 1
FLAGS_KNOWN: Final = 0x7

TABLE_OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
TABLE_RESERVED_MASK: Final = 0xFF00_0000_0000_01FE

TYPE_DIRTY_TRACKING: Final = 1
MAX_NAME: Final = 1023
MIN_GRANULARITY_BITS: Final = 9
MAX_GRANULARITY_BITS: Final = 31
MAX_TABLE_SIZE: Final = 1 << 27
MAX_BITMAP_BYTES: Final = 512 << 20

_FIXED: Final = struct.Struct(">QIIBBHI")


class BitmapEntry(NamedTuple):
    """One persistent bitmap. Offsets in bytes, the size of the table in entries."""

    table_offset: int
    table_size: int
    flags: int
    granularity_bits: int
    name: str


async def read_bitmap_directory(file: "BlockIO", header: "Header") -> list[BitmapEntry]:
    """All bitmaps in order; none where the image has none, or none that is consistent.

    Raises: InvalidImage, CorruptImage; OSError.
    """
    data = ext.find(header.extensions, ext.BITMAPS)
    if data is None or not header.autoclear_features & AUTOCLEAR_BITMAPS:
        return []
    place = ext.parse_bitmaps(data, header.cluster_size)
    if place.directory_offset == 0 or place.directory_offset + place.directory_size > file.length:
        raise CorruptImage("Broken bitmap directory", offset=place.directory_offset)
    directory = bytes(await file.pread(place.directory_offset, place.directory_size))
    found: list[BitmapEntry] = []
    names: set[str] = set()
    at = 0
    while at < len(directory):
        entry, length = _parse_entry(directory, at, header, place.directory_offset)
        if entry.name in names:
            raise CorruptImage(f"Bitmap already exists: {entry.name}", offset=place.directory_offset + at)
        names.add(entry.name)
        found.append(entry)
        at += length
        if len(found) > place.nb_bitmaps:
            raise CorruptImage("More bitmaps found than specified in header extension", offset=place.directory_offset)
    if len(found) < place.nb_bitmaps:
        raise CorruptImage("Less bitmaps found than specified in header extension", offset=place.directory_offset)
    return found


def _parse_entry(directory: bytes, at: int, header: "Header", start: int) -> tuple[BitmapEntry, int]:
    """The entry at `at`, and its length with the padding."""
    if len(directory) - at < _FIXED.size:
        raise CorruptImage("Broken bitmap directory", offset=start + at)
    offset, size, flags, kind, bits, name_size, extra_size = _FIXED.unpack_from(directory, at)
    length = _FIXED.size + extra_size + name_size + 7 & ~7
    if length > len(directory) - at:
        raise CorruptImage("Broken bitmap directory", offset=start + at)
    if extra_size:
        raise CorruptImage("Bitmap extra data is not supported", offset=start + at)
    name = directory[at + _FIXED.size : at + _FIXED.size + name_size].decode("utf-8", "surrogateescape")
    good = (
        kind == TYPE_DIRTY_TRACKING
        and 0 < name_size <= MAX_NAME
        and MIN_GRANULARITY_BITS <= bits <= MAX_GRANULARITY_BITS
        and offset
        and not offset % header.cluster_size
        and offset < 1 << 62
        and 0 < size <= MAX_TABLE_SIZE
        and size << header.cluster_bits <= MAX_BITMAP_BYTES
        and not flags & ~FLAGS_KNOWN
    )
    if not good:
        raise CorruptImage(f"Bitmap '{name}' doesn't satisfy the constraints", offset=start + at)
    return BitmapEntry(offset, size, flags, bits, name), length


def directory_entry_bytes(name: str) -> int:
    """How many bytes the entry of a bitmap of that name takes, with the padding."""
    return _FIXED.size + len(name.encode("utf-8", "surrogateescape")) + 7 & ~7


def directory_bytes(entries: Iterable[BitmapEntry]) -> bytes:
    """A directory of these bitmaps, in order."""
    parts = bytearray()
    for entry in entries:
        name = entry.name.encode("utf-8", "surrogateescape")
        fixed = _FIXED.pack(
            entry.table_offset,
            entry.table_size,
            entry.flags,
            TYPE_DIRTY_TRACKING,
            entry.granularity_bits,
            len(name),
            0,
        )
        parts += (fixed + name).ljust(directory_entry_bytes(entry.name), b"\0")
    return bytes(parts)
