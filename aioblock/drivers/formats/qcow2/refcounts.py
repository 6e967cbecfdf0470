"""Refcounts: which host clusters are in use, and how often. Allocation, counting, growth of blocks and table.

In memory the counts of a cluster go up as soon as it is allocated, and down only when the removal of the reference is
stable in the file (`commit`). So a cluster whose count is 0 here may be used at once, and a block may be written to the
file at any time: at worst it counts too many.

Allocation is first-fit behind `hint`, below which nothing is free: the first place, in the block that has the next free
cluster, where all that is wanted adjoins. Where no block covers the next clusters, a new block takes the first of the
clusters that it covers, and counts itself; where the refcount table has no room for it, a new, larger table is laid
right behind the new blocks. The file learns of both by the next commit.
"""

import asyncio
import errno
from array import array
from typing import TYPE_CHECKING, Final

from aioblock.drivers.formats.qcow2.entries import (
    REFTABLE_OFFSET_MASK,
    REFTABLE_RESERVED_MASK,
    as_c,
    table_from_bytes,
)
from aioblock.drivers.formats.qcow2.refblocks import counts_from_bytes, find_run, find_zero, zero_counts
from aioblock.drivers.formats.qcow2.tables import CachedTable, trim
from aioblock.drivers.formats.qcow2.validation import MAX_REFCOUNT_TABLE_BYTES

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Free, Image

__all__ = ["Refcounts"]


SETTLED_AT_ONCE: Final = 1024
"""How many clusters are counted down before other tasks get their turn."""


class Refcounts:
    """The refcounts of an image. `load` comes first; a read-only image never needs it."""

    def __init__(self, image: "Image", limit: int) -> None:
        header = image.header
        self.image = image
        self.limit = limit
        self.order = header.refcount_order
        self.max_count = header.max_refcount
        self.shift = image.cluster_bits + 3 - self.order
        """log2 of the number of clusters that a block covers."""
        self.mask = (1 << self.shift) - 1
        self.table: array[int] = array("Q")
        """Refcount table entries; in memory it may have moved and grown already."""
        self.table_offset = header.refcount_table_offset
        self.table_dirty: set[int] = set()
        self.table_moved = False
        self.blocks: dict[int, CachedTable] = {}
        self.dirty: dict[int, CachedTable] = {}
        self.hint = 0
        self._loaded = False
        self._turns: dict[int, asyncio.Event] = {}

    def __repr__(self) -> str:
        return f"<Refcounts blocks={len(self.blocks)} dirty={len(self.dirty)} limit={self.limit} hint={self.hint}>"

    async def load(self) -> None:
        """Read the refcount table anew, and forget the blocks. Raises: OSError."""
        header = self.image.header
        nbytes = header.refcount_table_clusters << header.cluster_bits
        if self.image.event is not None:
            await self.image.event("reftable_load")
        self.table = table_from_bytes(await self.image.file.pread(header.refcount_table_offset, nbytes))
        self.table_offset = header.refcount_table_offset
        self.blocks.clear()
        self.hint = 0
        self._loaded = True

    def forget(self) -> None:
        """The file was changed behind our back: `load` comes next."""
        self.blocks.clear()
        self.dirty.clear()
        self.table_dirty.clear()
        self.table_moved = False

    async def ready(self) -> None:
        """Load, unless that is done. Raises: OSError."""
        if not self._loaded:
            await self.load()

    # -- blocks ------------------------------------------------------------------------------------------------------

    def block_clusters(self) -> list[int]:
        """The host clusters of all blocks."""
        bits = self.image.cluster_bits
        return [entry >> bits for entry in self.table if entry]

    def is_block(self, cluster: int) -> bool:
        """Whether a block lies in this host cluster."""
        return cluster << self.image.cluster_bits in self.table

    def has_block(self, index: int) -> bool:
        """Whether a block covers range number `index`."""
        return index < len(self.table) and self.table[index] != 0

    async def fetch(self, index: int) -> CachedTable:
        """Block number `index`, which is there (`has_block`), loaded where needed.

        Nothing suspends between its return and the caller's next step. Raises: OSError.
        """
        while True:
            block = self.blocks.get(index)
            if block is not None:
                block.used = True
                return block
            if (turn := self._turns.get(index)) is not None:
                await turn.wait()
                continue
            turn = self._turns[index] = asyncio.Event()
            try:
                await self._load_block(index)
            finally:
                del self._turns[index]
                turn.set()

    async def _load_block(self, index: int) -> None:
        image = self.image
        entry = self.table[index]
        offset = entry & REFTABLE_OFFSET_MASK
        if offset & image.cluster_mask:
            raise image.corruption(f"Refblock offset {offset:#x} unaligned (reftable index: {as_c(index)})")
        if not offset or entry & REFTABLE_RESERVED_MASK:
            raise image.corruption(f"Refcount table entry {entry:#x} is invalid (reftable index: {as_c(index)})")
        if image.event is not None:
            await image.event("refblock_load")
        counts = counts_from_bytes(await image.file.pread(offset, image.cluster_size), self.order)
        trim(self.blocks, self.limit - 1)
        self.blocks[index] = CachedTable(index, offset, counts)

    def _changed(self, block: CachedTable, first: int, end: int) -> None:
        block.touch(first, end)
        self.dirty[block.index] = block

    @property
    def crowded(self) -> bool:
        """Whether a writer should have the blocks written back before it makes more of them dirty."""
        return len(self.dirty) >= self.limit

    # -- allocation --------------------------------------------------------------------------------------------------

    async def allocate(self, wanted: int, what: str, behind: int = 0) -> tuple[int, int]:
        """Allocate up to `wanted` adjoining host clusters, at least one: the first, and how many. Their count is 1.

        `what` they are for is said in messages; they are not before cluster `behind`. Raises: OSError; then nothing is
        allocated.
        """
        event = self.image.event
        if event is not None:
            await event("cluster_alloc")
            await event("refblock_alloc")
        while True:
            lowest = max(self.hint, behind)
            index, first = lowest >> self.shift, lowest & self.mask
            block = self.blocks.get(index)
            if block is None:
                if self.has_block(index):
                    await self.fetch(index)
                else:
                    self._add_block(index, what)
                continue
            block.used = True
            counts = block.entries
            first = find_zero(counts, first)
            if first < 0:
                behind = (index + 1) << self.shift
                if lowest == self.hint:
                    self.hint = behind
                continue
            place, count = find_run(counts, first, wanted)
            cluster = (index << self.shift) + place
            self._check_free(cluster, count, what)
            for number in range(place, place + count):
                counts[number] = 1
            self._changed(block, place, place + count)
            if lowest == self.hint:
                self.hint = cluster + count if place == first else (index << self.shift) + first
            return cluster, count

    def _check_free(self, cluster: int, count: int, what: str) -> None:
        """Raises: OSError where clusters that count as free hold metadata."""
        if not cluster and what != "data cluster":
            raise self.image.corruption(f"Preventing invalid allocation of {what} at offset 0")
        self.image.check_not_metadata(cluster, count)

    async def allocate_run(self, count: int, what: str) -> int:
        """Allocate exactly `count` adjoining host clusters, also across blocks; returns the first. Raises: OSError."""
        first = have = behind = 0
        try:
            while have < count:
                if not have and count > self.mask:  # more than a block of its own range can cover
                    behind = self._add_blocks(count, what)
                cluster, more = await self.allocate(count - have, what, behind)
                if have and cluster != first + have:
                    lost, have, behind = have, 0, cluster
                    await self.give_back(first, lost)
                    await self.give_back(cluster, more)
                    continue
                first, have = cluster - have, have + more
                behind = first + have
        except BaseException:
            await self.give_back(first, have)
            raise
        return first

    async def allocate_at(self, cluster: int) -> bool:
        """Allocate one given host cluster, if a block covers it and it is free. Raises: OSError."""
        index = cluster >> self.shift
        if not self.has_block(index):
            return False
        block = await self.fetch(index)
        place = cluster & self.mask
        if block.entries[place]:
            return False
        self._check_free(cluster, 1, "compressed cluster")
        block.entries[place] = 1
        self._changed(block, place, place + 1)
        return True

    async def give_back(self, cluster: int, count: int) -> None:
        """Undo an allocation that nothing ever referred to: the clusters are free at once. Raises: OSError."""
        for number in range(cluster, cluster + count):
            await self._count_down(number)

    # -- counting ----------------------------------------------------------------------------------------------------

    async def count(self, cluster: int) -> int:
        """The refcount of a host cluster. Raises: OSError."""
        index = cluster >> self.shift
        if not self.has_block(index):
            return 0
        return (await self.fetch(index)).entries[cluster & self.mask]

    def count_up(self, cluster: int) -> bool:
        """One more reference to a used host cluster whose block was just fetched; False where the count is full."""
        index, place = cluster >> self.shift, cluster & self.mask
        block = self.blocks[index]
        before = block.entries[place]
        if not 0 < before < self.max_count:
            return False
        block.entries[place] = before + 1
        self._changed(block, place, place + 1)
        return True

    async def _count_down(self, cluster: int) -> None:
        index, place = cluster >> self.shift, cluster & self.mask
        if not self.has_block(index):
            raise self.image.corruption(f"Host cluster {cluster:#x} is in use, but no refcount block covers it")
        block = await self.fetch(index)
        left = block.entries[place] - 1
        if left < 0:
            raise self.image.corruption(f"Host cluster {cluster:#x} is in use, but its refcount is 0")
        block.entries[place] = left
        self._changed(block, place, place + 1)
        if not left:
            self.hint = min(self.hint, cluster)
            self.image.packer.freed(cluster)

    async def settle(self, free: "Free", discard: bool) -> None:
        """Count references down whose removal is stable. With `discard`, storage that becomes free is given back first.

        Raises: OSError; what could not be counted down stays in use for ever, which is safe.
        """
        if self.image.event is not None:
            await self.image.event("cluster_free")
        stop = free.first + free.clusters
        for low in range(free.first, stop, SETTLED_AT_ONCE):
            clusters = range(low, min(low + SETTLED_AT_ONCE, stop))
            if discard:  # before they may be used again
                await self.give_storage_back([cluster for cluster in clusters if await self.count(cluster) == 1])
            for cluster in clusters:
                await self._count_down(cluster)
            if clusters.stop < stop:
                await asyncio.sleep(0)

    async def give_storage_back(self, clusters: list[int]) -> None:
        """Discard host clusters, in ascending order, that nobody refers to or allocates. Advisory: no error is told."""
        file, bits = self.image.file, self.image.cluster_bits
        number = 0
        while number < len(clusters):
            first, number = clusters[number], number + 1
            count = 1
            while number < len(clusters) and clusters[number] == first + count:
                number, count = number + 1, count + 1
            try:
                await file.pdiscard(first << bits, count << bits)
            except OSError:
                pass

    # -- growth ------------------------------------------------------------------------------------------------------

    def _add_block(self, index: int, what: str) -> None:
        """A block for a range that has none, in the first cluster of that range. Memory only: no I/O."""
        image = self.image
        cluster = index << self.shift
        if not index:
            raise image.corruption("Preventing invalid allocation of refcount block at offset 0")
        if (index + 1) << self.shift > 1 << (56 - image.cluster_bits):
            raise OSError(errno.EFBIG, f"The image file has no room for a {what}")
        if index >= len(self.table):
            self._grow_table(index)
            return
        self._check_free(cluster, 1, "refcount block")
        self._set_block(index, cluster)
        self._set_used(cluster, 1)

    def _add_blocks(self, run: int, what: str) -> int:
        """Blocks for a longer run than one of them covers: behind all that are there, and themselves before the run.

        Returns where the run begins. Memory only: no I/O.
        """
        index = -(-len(self.table.tobytes().rstrip(b"\0")) // 8)
        first, count = index << self.shift, -(-run // self.mask)
        if (index + count) << self.shift > 1 << (56 - self.image.cluster_bits):
            raise OSError(errno.EFBIG, f"The image file has no room for a {what}")
        if index + count > len(self.table):
            return self._grow_table(index, run)
        self._check_free(first, count, "refcount block")
        for number in range(count):
            self._set_block(index + number, first + number)
        self._set_used(first, count)
        return first + count

    def _set_block(self, index: int, cluster: int) -> None:
        block = CachedTable(index, cluster << self.image.cluster_bits, zero_counts(self.shift, self.order))
        self.table[index] = block.offset
        self.table_dirty.add(index)
        trim(self.blocks, self.limit - 1)
        self.blocks[index] = block
        self.image.table_moved(0, 0, block.offset, self.image.cluster_size)
        self._changed(block, 0, len(block.entries))

    def drop_block(self, block: CachedTable) -> None:
        """Take away a block that counts nothing, or itself alone. Nobody allocates before that is stable."""
        image = self.image
        del self.blocks[block.index]
        self.dirty.pop(block.index, None)
        self.table[block.index] = 0
        self.table_dirty.add(block.index)
        image.table_moved(block.offset, image.cluster_size, 0, 0)
        if block.offset >> image.cluster_bits >> self.shift != block.index:
            image.release(block.offset)

    def _set_used(self, cluster: int, count: int) -> None:
        """Set the count of clusters to 1; their blocks are new, and so in memory."""
        for number in range(cluster, cluster + count):
            self.blocks[number >> self.shift].entries[number & self.mask] = 1

    def _grow_table(self, index: int, run: int = 0) -> int:
        """A larger table in a new place, and the blocks from `index` on that count it, themselves, and a run behind it.

        Returns where that run, which is free, begins.
        """
        image = self.image
        per_cluster = image.cluster_size >> 3
        most = MAX_REFCOUNT_TABLE_BYTES >> image.cluster_bits
        blocks = 1
        while True:
            entries = index + blocks
            clusters = -(-entries // per_cluster)
            if clusters > most:
                raise OSError(errno.EFBIG, "The refcount table cannot grow any further")
            clusters = min(max(clusters, -(-entries * 3 // (2 * per_cluster))), most)
            needed = -(-(blocks + clusters + run) >> self.shift)
            if needed <= blocks:
                break
            blocks = needed
        first = index << self.shift
        self._check_free(first, blocks + clusters, "refcount table")
        old, old_bytes = self.table_offset, 8 * len(self.table)
        image.release(old, old_bytes >> image.cluster_bits)
        self.table.extend(array("Q", bytes((clusters << image.cluster_bits) - old_bytes)))
        self.table_offset = (first + blocks) << image.cluster_bits
        image.table_moved(old, old_bytes, self.table_offset, 8 * len(self.table))
        self.table_moved = True
        for number in range(blocks):
            self._set_block(index + number, first + number)
        self._set_used(first, blocks + clusters)
        return first + blocks + clusters
