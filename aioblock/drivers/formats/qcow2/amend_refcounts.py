"""Changing the width of refcounts: new blocks and a new table behind everything, and one write that switches to them.

    new blocks, new table => one write in the first sector: offset and size of the table, and the width
                          => the old blocks and the old table counted down

Until the switch the file holds nothing new that counts: the new tables lie in clusters which the old ones call free,
and which nobody else takes meanwhile.
"""

import asyncio
from array import array
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from aioblock.base.errors import NotSupported
from aioblock.drivers.formats.qcow2.commit import write_back
from aioblock.drivers.formats.qcow2.entries import REFTABLE_OFFSET_MASK, table_to_bytes
from aioblock.drivers.formats.qcow2.header import fixed_fields
from aioblock.drivers.formats.qcow2.refblocks import counts_to_bytes, zero_counts
from aioblock.drivers.formats.qcow2.refcounts import Refcounts
from aioblock.drivers.formats.qcow2.validation import MAX_REFCOUNT_TABLE_BYTES

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image

__all__ = ["change_refcount_order"]

SWITCHED: Final = slice(48, 104)
"""The bytes of the header from the offset of the table to the width, all in the first sector."""

Progress = Callable[[int, int], None]


async def change_refcount_order(image: "Image", order: int, progress: Progress | None = None) -> None:
    """Make refcounts `1 << order` bits wide. Version 3. Nothing else is in flight; memory and file agree.

    Failed before the switch: nothing has changed. Raises: NotSupported where a count does not fit; OSError.
    """
    old = image.refcounts
    plan = _Plan(image, order)
    await plan.look()
    plan.place()
    await plan.write(progress)
    await image.file.flush()

    header = image.header
    fields = header.refcount_table_offset, header.refcount_table_clusters, header.refcount_order
    header.refcount_table_offset = plan.table_cluster << image.cluster_bits
    header.refcount_table_clusters = plan.table_clusters
    header.refcount_order = order
    try:
        await image.file.pwrite(SWITCHED.start, fixed_fields(header)[SWITCHED])
        await image.file.flush()
    except OSError as error:  # nobody knows which tables count
        header.refcount_table_offset, header.refcount_table_clusters, header.refcount_order = fields
        image.failure = error
        raise
    image.refcounts = Refcounts(image, old.limit)
    await image.refcounts.load()
    image.metadata_clusters = None
    for entry in old.table:
        if entry:
            image.release(entry & REFTABLE_OFFSET_MASK)
    image.release(old.table_offset, 8 * len(old.table) >> image.cluster_bits)
    await write_back(image)


class _Plan:
    """The new blocks and their table. Numbers are clusters."""

    def __init__(self, image: "Image", order: int) -> None:
        self.image = image
        self.old = image.refcounts
        self.order = order
        self.shift = image.cluster_bits + 3 - order
        self.ranges: set[int] = set()
        """Those ranges of `1 << shift` clusters in which something is in use."""
        self.end = -(-image.file.length >> image.cluster_bits)
        """Behind everything that is in use or lies in the file."""
        self.first = self.table_cluster = self.table_clusters = 0

    async def look(self) -> None:
        """See what is in use. Raises: NotSupported where a count is too high; OSError."""
        most = (1 << (1 << self.order)) - 1
        old = self.old
        for index, entry in enumerate(old.table):
            if not entry:
                continue
            counts = (await old.fetch(index)).entries
            first = index << old.shift
            if max(counts) > most:
                place = next(number for number, count in enumerate(counts) if count > most)
                raise NotSupported(
                    f"Cannot decrease refcount entry width to {1 << self.order} bits: Cluster at offset "
                    f"{first + place << self.image.cluster_bits:#x} has a refcount of {counts[place]}"
                )
            step = min(1 << self.shift, len(counts))
            for place in range(0, len(counts), step):
                if any(counts[place : place + step]):
                    self.ranges.add(first + place >> self.shift)
            used = counts.tobytes().rstrip(b"\0")
            if used:
                self.end = max(self.end, first + (len(used) - 1) // counts.itemsize + 1)
            await asyncio.sleep(0)

    def place(self) -> None:
        """Lay the blocks, and behind them the table, behind everything. Raises: NotSupported."""
        bits = self.image.cluster_bits
        self.first = self.end
        while True:
            self.table_cluster = self.first + len(self.ranges)
            last = self.table_cluster + max(self.table_clusters, 1) - 1
            covering = set(range(self.first >> self.shift, (last >> self.shift) + 1))
            clusters = -(-8 * (max(self.ranges | covering) + 1) >> bits)
            if covering <= self.ranges and clusters <= self.table_clusters:
                break
            self.ranges |= covering
            self.table_clusters = max(self.table_clusters, clusters)
        if self.table_clusters << bits > MAX_REFCOUNT_TABLE_BYTES:
            raise NotSupported("The refcount table would be too large")

    async def write(self, progress: Progress | None) -> None:
        """Write all of it; the caller flushes. Raises: OSError."""
        image, bits = self.image, self.image.cluster_bits
        table = array("Q", bytes(self.table_clusters << bits))
        for number, index in enumerate(sorted(self.ranges)):
            counts = await self._counts(index)
            table[index] = self.first + number << bits
            await image.file.pwrite(table[index], counts_to_bytes(counts, self.order))
            if progress is not None:
                progress(number + 1, len(self.ranges))
            await asyncio.sleep(0)
        await image.file.pwrite(self.table_cluster << bits, table_to_bytes(table))

    async def _counts(self, index: int) -> "array[int]":
        """The counts of a new block."""
        old = self.old
        counts = zero_counts(self.shift, self.order)
        first, stop = index << self.shift, index + 1 << self.shift
        for number in range(first >> old.shift, (stop - 1 >> old.shift) + 1):
            if not old.has_block(number):
                continue
            entries = (await old.fetch(number)).entries
            base = number << old.shift
            low, high = max(first, base), min(stop, base + len(entries))
            counts[low - first : high - first] = array(counts.typecode, entries[low - base : high - base])
        for cluster in range(max(self.first, first), min(self.table_cluster + self.table_clusters, stop)):
            counts[cluster - first] = 1
        return counts
