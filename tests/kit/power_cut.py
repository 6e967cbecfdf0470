"""What may be left on a RecordedDisk when the power fails, and whether it is a sound qcow2 image.

A write is certain to be there if a flush began after it was done and has succeeded. Of the others each is there, or
not, or only some of its 512-byte sectors are, whatever their order was.
"""

import random
import struct
from collections import Counter

from aioblock.drivers.formats.qcow2.entries import (
    OFFSET_MASK,
    OFLAG_COMPRESSED,
    OFLAG_COPIED,
    compressed_extent,
    get_refcount,
)
from tests.kit.qcow2_images import header_of
from tests.kit.recorded_disk import RecordedDisk

__all__ = ["after_power_cut", "assert_sound"]

SECTOR = 512


def after_power_cut(disk: RecordedDisk, point: int, chance: random.Random) -> bytes:
    """The disk as it may be found when the power failed before record number `point`."""
    done = disk.records[:point]
    stable = max((record.offset for record in done if record.verb == "flush"), default=0)
    content = bytearray(disk.first)
    for record in done[:stable]:
        _apply(content, record.offset, record.data)
    mode = chance.choice(("none", "some", "some", "torn", "all"))
    for record in done[stable:]:
        if not record.data or mode == "none" or (mode == "some" and chance.random() < 0.5):
            continue
        if mode != "torn":
            _apply(content, record.offset, record.data)
            continue
        at = 0
        while at < len(record.data):
            end = min(len(record.data), at + SECTOR - (record.offset + at) % SECTOR)
            if chance.random() < 0.5:
                _apply(content, record.offset + at, record.data[at:end])
            at = end
    return bytes(content)


def _apply(content: bytearray, offset: int, data: bytes) -> None:
    if data:
        if len(content) < offset + len(data):
            content.extend(bytes(offset + len(data) - len(content)))
        content[offset : offset + len(data)] = data


def assert_sound(content: bytes) -> None:
    """Every reference in the image is counted, none is there twice that says it is the only one, no metadata is shared.

    Leaked clusters are all right. The image has no snapshots.
    """
    header = header_of(content)
    size = header.cluster_size
    content = content + bytes(-len(content) % size)
    references: Counter[int] = Counter()
    copied: list[int] = []

    def refer(offset: int, nbytes: int = 1) -> None:
        for cluster in range(offset // size, (offset + nbytes - 1) // size + 1):
            references[cluster] += 1

    def words(offset: int, count: int) -> tuple[int, ...]:
        return struct.unpack(f">{count}Q", content[offset : offset + 8 * count].ljust(8 * count, b"\0"))

    refer(0, size)
    refer(header.l1_table_offset, max(8 * header.l1_size, 1))
    refer(header.refcount_table_offset, header.refcount_table_clusters * size)
    blocks = words(header.refcount_table_offset, header.refcount_table_clusters * size // 8)
    for block in blocks:
        if block:
            assert block % size == 0
            refer(block, size)
    for l1_entry in words(header.l1_table_offset, header.l1_size):
        table = l1_entry & OFFSET_MASK
        if not table:
            continue
        refer(table, size)
        copied.extend([table // size] if l1_entry & OFLAG_COPIED else [])
        for entry in words(table, size // 8)[:: header.l2_entry_size // 8]:
            if entry & OFLAG_COMPRESSED:
                refer(*compressed_extent(entry, header.cluster_bits))
            elif host := entry & OFFSET_MASK:
                refer(host, size)
                copied.extend([host // size] if entry & OFLAG_COPIED else [])
    per_block = size * 8 >> header.refcount_order

    def refcount(cluster: int) -> int:
        index, place = divmod(cluster, per_block)
        if index >= len(blocks) or not blocks[index]:
            return 0
        return get_refcount(content[blocks[index] : blocks[index] + size], place, header.refcount_order)

    for cluster, count in references.items():
        assert refcount(cluster) >= count, (
            f"host cluster {cluster:#x}: refcount {refcount(cluster)}, references {count}"
        )
    for cluster in copied:
        assert references[cluster] == 1, f"host cluster {cluster:#x} is COPIED and has {references[cluster]} references"
