"""What a dirty bitmap takes in an image: limits, sizes, and the entries of its table. No I/O.

A bitmap is stored packed (see `core.dirty_bitmap`), in clusters of data that a table points to. A table entry without
a cluster says that all its bits are clear, or that all are set.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import BitmapError, CorruptImage
from aioblock.drivers.formats.qcow2.bitmap_directory import (
    MAX_BITMAP_BYTES,
    MAX_NAME,
    MAX_TABLE_SIZE,
    TABLE_OFFSET_MASK,
    TABLE_RESERVED_MASK,
    directory_entry_bytes,
)
from aioblock.drivers.formats.qcow2.extensions import MAX_BITMAP_DIRECTORY, MAX_BITMAPS

if TYPE_CHECKING:
    from aioblock.core.dirty_bitmap import DirtyBitmap
    from aioblock.drivers.formats.qcow2.header import Header

__all__ = ["ALL_ONES", "bitmaps_size", "check_new_bitmap", "data_offset", "table_entries"]

ALL_ONES: Final = 1
"""The table entry without a cluster whose bits are all set."""


def table_entries(bitmap: "DirtyBitmap", cluster_size: int) -> int:
    """How many entries the table of a bitmap has: one for each cluster of its packed bits."""
    return -(-bitmap.packed_bytes // cluster_size)


def data_offset(entry: int, cluster_size: int) -> int:
    """Where the data of a table entry lies in the file; 0: nowhere. Raises: CorruptImage."""
    offset = entry & TABLE_OFFSET_MASK
    if entry & TABLE_RESERVED_MASK or (offset and entry & ALL_ONES) or offset % cluster_size:
        raise CorruptImage(f"Bitmap table entry {entry:#x} is invalid")
    return offset


def check_new_bitmap(bitmap: "DirtyBitmap", others: "Iterable[DirtyBitmap]", header: "Header") -> None:
    """Whether an image can hold one more bitmap. Raises: BitmapError."""
    name = bitmap.name
    encoded = name.encode("utf-8", "surrogateescape")
    if header.version < 3:
        raise BitmapError("Cannot store dirty bitmaps in qcow2 v2 files", name=name)
    if len(encoded) > MAX_NAME:
        raise BitmapError(f"Name length exceeds maximum ({MAX_NAME} characters)", name=name)
    if not bitmap.bits:
        raise BitmapError("A disk without any bytes has no room for bitmaps", name=name)
    entries = table_entries(bitmap, header.cluster_size)
    if entries > MAX_TABLE_SIZE or entries << header.cluster_bits > MAX_BITMAP_BYTES:
        raise BitmapError("Too much space will be occupied by the bitmap. Use larger granularity", name=name)
    count, size = 1, directory_entry_bytes(name)
    for other in others:
        count += 1
        size += directory_entry_bytes(other.name)
    if count > MAX_BITMAPS:
        raise BitmapError("Maximum number of persistent bitmaps is already reached", name=name)
    if size > MAX_BITMAP_DIRECTORY:
        raise BitmapError("Not enough space in the bitmap directory", name=name)


def bitmaps_size(bitmaps: "Iterable[DirtyBitmap]", cluster_size: int) -> int:
    """How many bytes a file grows at most by storing these bitmaps in it; inconsistent ones are not copied."""
    nbytes = directory = 0
    for bitmap in bitmaps:
        if bitmap.persistent and not bitmap.inconsistent:
            entries = table_entries(bitmap, cluster_size)
            nbytes += (entries + -(-8 * entries // cluster_size)) * cluster_size
            directory += directory_entry_bytes(bitmap.name)
    return nbytes + -(-directory // cluster_size) * cluster_size
