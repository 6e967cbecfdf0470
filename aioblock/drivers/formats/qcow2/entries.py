"""Entries of the tables of a qcow2 image: L1, L2, refcount table, refcount blocks. Pure encodings, no I/O.

    L1 entry             63 COPIED | 62-56 reserved | 55-9 offset of the L2 table | 8-0 reserved
    L2 entry, standard   63 COPIED | 62 COMPRESSED = 0 | 61-56 reserved | 55-9 host offset | 8-1 reserved | 0 ZERO
    L2 entry, compressed 62 COMPRESSED = 1 | 61-x sectors - 1 | x-1 - 0 host offset, bytes; x = 62 - (cluster_bits - 8)
    L2 bitmap, extended  63-32 subcluster 31-0 reads as zeroes | 31-0 subcluster 31-0 is allocated
    Refcount table entry 63-9 offset of the refcount block | 8-0 reserved

An extended L2 entry is 16 bytes: a standard or compressed entry (where bit 0 is reserved), then the bitmap. COPIED says
that the refcount is exactly one, so that the cluster may be written in place. Refcounts narrower than a byte
are packed from the least significant bits on, wider ones are big-endian.

Everything here takes and gives plain ints, because it stands on the way of every request.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import Final

__all__ = [
    "COMPRESSED",
    "NORMAL",
    "OFFSET_MASK",
    "OFLAG_COMPRESSED",
    "OFLAG_COPIED",
    "OFLAG_ZERO",
    "REFTABLE_OFFSET_MASK",
    "UNALLOCATED",
    "ZERO_ALLOC",
    "ZERO_PLAIN",
    "as_c",
    "cluster_type",
    "compressed_entry",
    "compressed_extent",
    "get_refcount",
    "invalid_bitmap",
    "set_refcount",
    "subcluster_mask",
    "subcluster_run",
    "subcluster_type",
    "table_from_bytes",
    "table_to_bytes",
]

OFLAG_COPIED: Final = 1 << 63
OFLAG_COMPRESSED: Final = 1 << 62
OFLAG_ZERO: Final = 1

OFFSET_MASK: Final = 0x00FF_FFFF_FFFF_FE00
"""Where the offset lies in an L1 entry and in a standard L2 entry."""
L1_RESERVED_MASK: Final = 0x7F00_0000_0000_01FF
L2_RESERVED_MASK: Final = 0x3F00_0000_0000_01FE
"""Reserved bits of a standard L2 entry; in an extended one OFLAG_ZERO is reserved too."""
REFTABLE_OFFSET_MASK: Final = 0xFFFF_FFFF_FFFF_FE00
REFTABLE_RESERVED_MASK: Final = 0x1FF

SECTOR: Final = 512
"""The unit in which the length of a compressed cluster is counted, whatever the cluster size."""

# What a cluster is, or a subcluster.
UNALLOCATED: Final = 0  # no offset, nothing decided: see the backing file
ZERO_PLAIN: Final = 1  # reads as zeroes, no offset
ZERO_ALLOC: Final = 2  # reads as zeroes, and a host cluster is kept for it
NORMAL: Final = 3  # data at the offset
COMPRESSED: Final = 4
UNALLOCATED_ALLOC: Final = 5  # subclusters only: nothing decided, but the cluster has a host cluster
INVALID: Final = 6  # subclusters only: both allocated and zero

SUBCLUSTERS: Final = 32
"""Subclusters of a cluster in an image with extended L2 entries."""

ALLOC_ALL: Final = 0x0000_0000_FFFF_FFFF
ZERO_ALL: Final = 0xFFFF_FFFF_0000_0000


def cluster_type(entry: int, host_mask: int = OFFSET_MASK) -> int:
    """What a standard or compressed L2 entry (not an extended one) stands for.

    `host_mask`: one of these bits is set where there is a host cluster; with an external data file COPIED is one.
    """
    if entry & OFLAG_COMPRESSED:
        return COMPRESSED
    if entry & OFLAG_ZERO:
        return ZERO_ALLOC if entry & host_mask else ZERO_PLAIN
    return NORMAL if entry & host_mask else UNALLOCATED


# -- compressed clusters ---------------------------------------------------------------------------------------------


def compressed_extent(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Offset and longest possible length, in bytes, of the stream that a compressed entry names.

    The stream ends somewhere in its last sector: what follows it there belongs to others.
    """
    shift = 70 - cluster_bits
    offset = entry & ((1 << shift) - 1)
    sectors = ((entry >> shift) & ((1 << (cluster_bits - 8)) - 1)) + 1
    return offset, sectors * SECTOR - (offset & (SECTOR - 1))


def compressed_entry(offset: int, nbytes: int, cluster_bits: int) -> int:
    """The L2 entry of a stream of `nbytes` at `offset`. Raises: ValueError where the entry cannot hold it."""
    shift = 70 - cluster_bits
    additional = (offset + nbytes - 1) // SECTOR - offset // SECTOR
    if nbytes < 1 or not 0 <= offset < 1 << shift or additional >= 1 << (cluster_bits - 8):
        raise ValueError(f"no compressed entry can hold {nbytes} bytes at {offset:#x}")
    return OFLAG_COMPRESSED | additional << shift | offset


# -- extended L2 entries ---------------------------------------------------------------------------------------------


def subcluster_mask(first: int, count: int) -> int:
    """The "allocated" bits of `count` subclusters from `first` on; shifted left by 32, their "zero" bits."""
    return ((1 << count) - 1) << first


def invalid_bitmap(entry: int, bitmap: int, host_mask: int = OFFSET_MASK) -> bool:
    """Whether a bitmap contradicts itself or its entry: allocated and zero, allocated without an offset."""
    if entry & OFLAG_COMPRESSED:
        return bitmap != 0
    allocated = bitmap & ALLOC_ALL
    return bool(allocated & bitmap >> 32) or (allocated != 0 and not entry & host_mask)


def subcluster_type(entry: int, bitmap: int, index: int, host_mask: int = OFFSET_MASK) -> int:
    """What one subcluster of an extended entry is."""
    if entry & OFLAG_COMPRESSED:
        return COMPRESSED
    kept = entry & host_mask
    if bitmap >> (32 + index) & 1:
        if bitmap >> index & 1:
            return INVALID
        return ZERO_ALLOC if kept else ZERO_PLAIN
    if bitmap >> index & 1:
        return NORMAL if kept else INVALID
    return UNALLOCATED_ALLOC if kept else UNALLOCATED


def subcluster_run(
    entry: int, bitmap: int, first: int, last: int = SUBCLUSTERS, host_mask: int = OFFSET_MASK
) -> tuple[int, int]:
    """What subcluster `first` is, and how many from there on, before `last`, are the same."""
    kind = subcluster_type(entry, bitmap, first, host_mask)
    if kind == COMPRESSED:
        return kind, last - first
    # A bit is 1 where the two bits of a subcluster differ from those of `first`.
    allocated, zero = bitmap & ALLOC_ALL, bitmap >> 32
    differs = (allocated ^ (ALLOC_ALL if allocated >> first & 1 else 0)) | (
        zero ^ (ALLOC_ALL if zero >> first & 1 else 0)
    )
    differs >>= first
    run = (differs & -differs).bit_length() - 1 if differs else last - first
    return kind, min(run, last - first)


def as_c(number: int) -> str:
    """A number as C's `%#x` prints it, for messages that are QEMU's too: zero has no prefix."""
    return f"{number:#x}" if number else "0"


# -- tables ----------------------------------------------------------------------------------------------------------

_SWAP: Final = sys.byteorder == "little"


def table_from_bytes(data: bytes | bytearray | memoryview) -> "array[int]":
    """Big-endian 64-bit entries as an array in the machine's own order. The length is a multiple of 8."""
    table = array("Q")
    table.frombytes(data)
    if _SWAP:
        table.byteswap()
    return table


def table_to_bytes(table: "array[int] | Iterable[int]") -> bytes:
    """The reverse of `table_from_bytes`; the argument stays as it is."""
    swapped = array("Q", table)
    if _SWAP:
        swapped.byteswap()
    return swapped.tobytes()


def get_refcount(block: bytes | bytearray | memoryview, index: int, refcount_order: int) -> int:
    """Refcount number `index` of a refcount block."""
    if refcount_order >= 3:
        width = 1 << (refcount_order - 3)
        return int.from_bytes(block[index * width : (index + 1) * width], "big")
    bit = index << refcount_order
    return block[bit >> 3] >> (bit & 7) & ((1 << (1 << refcount_order)) - 1)


def set_refcount(block: bytearray | memoryview, index: int, refcount_order: int, value: int) -> None:
    """Set refcount number `index` of a refcount block. Raises: OverflowError where it is too wide; nothing changed."""
    if not 0 <= value < 1 << (1 << refcount_order):
        raise OverflowError(f"refcount {value} does not fit in {1 << refcount_order} bits")
    if refcount_order >= 3:
        width = 1 << (refcount_order - 3)
        block[index * width : (index + 1) * width] = value.to_bytes(width, "big")
        return
    bit = index << refcount_order
    mask = (1 << (1 << refcount_order)) - 1
    block[bit >> 3] = block[bit >> 3] & ~(mask << (bit & 7)) & 0xFF | value << (bit & 7)
