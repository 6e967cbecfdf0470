"""Ordered write-back: the one place where tables in memory go to the file.

`A => B`: the write of A is complete, then a flush of the file succeeded, before B is written.

    data, refcount blocks => refcount table entries (or a new table => the header's 12 bytes for it)
                          => L2 tables => L1 entries (or a new L1 table => the header's 12 bytes for it)
                          => counting down what was unreferenced

Data is written before its L2 entry is set in memory, so what stands in a table when `commit` looks at it is complete.
It looks once, at the beginning, without an await: what changes later belongs to the next commit. Steps that have
nothing to do cost nothing; a file that was not written since is not flushed again (the file's node sees to it).

With lazy refcounts a commit leaves refcount blocks and their table in memory, as long as there is room for them and no
L2 table is new (see `write`): the dirty bit, which is stable before the first L2 entry that relies on it, says that
they must be counted anew. The order of everything else stays as it is. `write_back` writes them, and clears the bit.

A failure leaves everything dirty and is for ever: after a failed flush nobody knows what is in the file, and a later
one that succeeds would say nothing about it.
"""

import asyncio
from array import array
from typing import TYPE_CHECKING, Final, NamedTuple

from aioblock.base.errors import message_of
from aioblock.drivers.formats.qcow2.data import give_data_back
from aioblock.drivers.formats.qcow2.entries import table_to_bytes
from aioblock.drivers.formats.qcow2.features import INCOMPAT_DIRTY
from aioblock.drivers.formats.qcow2.header import features_field, l1_field, refcount_table_field
from aioblock.drivers.formats.qcow2.refblocks import counts_to_bytes
from aioblock.drivers.formats.qcow2.tables import CachedTable

if TYPE_CHECKING:
    from aioblock.drivers.formats.qcow2.image import Image
    from aioblock.drivers.formats.qcow2.refcounts import Refcounts

__all__ = ["commit", "write_back"]

PARALLEL: Final = 16
"""How many tables are written at a time."""

GRAIN: Final = 4096
"""Dirty parts of a table are written in whole pieces of this many bytes, so that the file need not read first."""


class _Dirty(NamedTuple):
    """A dirty part of a table as it was when the commit began."""

    table: CachedTable
    first: int
    end: int
    offset: int
    data: bytes


async def commit(image: "Image", *, counts: bool = False) -> None:
    """Write back everything that was done before the call. The last writes are not flushed: the caller sees to that.

    `counts`: refcounts too, where they are lazy.

    Must not be cancelled. Raises: OSError, for ever after the first time; also where the image was found to be corrupt
    and is not written any more, and something that had been acknowledged is lost by that.
    """
    async with image.commit_lock:
        if image.corrupt and image.failure is None and not image.l2.dirty and not image.l1_dirty:
            return
        if image.failure is not None:
            raise OSError(image.failure.errno, message_of(image.failure))
        image.check_writable()
        try:
            lazy = image.options.lazy_refcounts and not counts and not image.refcounts.crowded
            if lazy and image.refcounts.dirty:
                await _mark_dirty(image)
            await _Commit(image, counts=not lazy).run()
        except OSError as error:
            image.failure = error
            raise


async def write_back(image: "Image") -> None:
    """Leave nothing in memory that the file does not have, and flush the file. No request is in flight.

    Must not be cancelled. Raises: as `commit`.
    """
    await commit(image, counts=True)
    if image.frees or image.refcounts.dirty:
        await commit(image, counts=True)  # the counts that the first one took down
    await image.flush_files()
    if image.lazily_dirty:
        image.header.incompatible_features &= ~INCOMPAT_DIRTY
        await image.file.pwrite(*features_field(image.header))
        await image.file.flush()
        image.lazily_dirty = False


async def _mark_dirty(image: "Image") -> None:
    """Say in the file that its refcounts cannot be relied on, before anything relies on that."""
    if image.lazily_dirty:
        return
    image.header.incompatible_features |= INCOMPAT_DIRTY
    await image.file.pwrite(*features_field(image.header))
    await image.file.flush()
    image.lazily_dirty = True


class _Commit:
    """One commit: what was dirty when it began, and the steps."""

    def __init__(self, image: "Image", *, counts: bool) -> None:
        refcounts = image.refcounts
        self.image = image
        self.refblocks: list[_Dirty] = []
        self.reftable: set[int] = set()
        self.reftable_moved: tuple[int, array[int]] | None = None
        if counts:
            self._take_counts(refcounts)
        self.tables = _take(image.l2.dirty, 64, image.cluster_size)
        self.l1, image.l1_dirty = image.l1_dirty, set()
        self.l1_data = {index: image.l1[index] for index in self.l1}
        self.l1_moved = None
        if image.l1_moved:
            image.l1_moved = False
            self.l1_moved = image.l1_offset, image.l1[:]
        self.frees, image.frees, image.unsettled = image.frees, [], 0
        self.unused_data, image.unused_data = image.unused_data, set()

    def _take_counts(self, refcounts: "Refcounts") -> None:
        self.refblocks = _take(refcounts.dirty, 1 << refcounts.order, self.image.cluster_size)
        self.reftable, refcounts.table_dirty = refcounts.table_dirty, set()
        self.reftable_data = {index: refcounts.table[index] for index in self.reftable}
        if refcounts.table_moved:
            refcounts.table_moved = False
            self.reftable_moved = refcounts.table_offset, refcounts.table[:]

    async def run(self) -> None:
        """The steps in their order. Raises: OSError, and then everything not done is dirty again."""
        file = self.image.file
        try:
            await self._write([(part.offset, part.data) for part in self.refblocks], self._count_event())
            if self.reftable or self.reftable_moved:
                await file.flush()
                await self._write_reftable()
            if self.tables:
                await self.image.flush_files()
                await self._write([(part.offset, part.data) for part in self.tables], "l2_update")
            if self.l1 or self.l1_moved:
                await file.flush()
                await self._write_l1()
            if self.frees or self.unused_data:
                await file.flush()
        except BaseException:
            self._put_back()
            raise
        self._settle_tables()
        await self._free()
        if self.unused_data:
            await give_data_back(self.image, self.unused_data)

    def _count_event(self) -> str:
        """What a debugger is told before refcount blocks are written."""
        if self.reftable_moved is not None:
            return "refblock_alloc_write_blocks"
        return "refblock_alloc_write" if self.reftable else "refblock_update_part"

    async def _write(self, parts: list[tuple[int, bytes]], event: str) -> None:
        """Write to the file, some parts at a time; none is under way any more when this ends. Raises: OSError."""
        self.image.check_writable()
        if self.image.event is not None and parts:
            await self.image.event(event)
        file = self.image.file

        async def write(part: tuple[int, bytes]) -> None:
            await file.pwrite(*part)

        for start in range(0, len(parts), PARALLEL):
            batch = parts[start : start + PARALLEL]
            if len(batch) == 1:
                await file.pwrite(*batch[0])
                continue
            results = await asyncio.gather(*map(write, batch), return_exceptions=True)
            for result in results:
                if result is not None:
                    raise result

    async def _write_reftable(self) -> None:
        header = self.image.header
        if self.reftable_moved is None:
            await self._write(_runs(header.refcount_table_offset, self.reftable_data), "refblock_alloc_hookup")
            return
        offset, table = self.reftable_moved
        await self._write([(offset, table_to_bytes(table))], "refblock_alloc_write_table")
        await self.image.file.flush()
        header.refcount_table_offset = offset
        header.refcount_table_clusters = 8 * len(table) >> header.cluster_bits
        await self._write([refcount_table_field(header)], "refblock_alloc_switch_table")

    async def _write_l1(self) -> None:
        header = self.image.header
        if self.l1_moved is None:
            await self._write(_runs(header.l1_table_offset, self.l1_data), "l1_update")
            return
        offset, table = self.l1_moved
        await self._write([(offset, table_to_bytes(table))], "l1_grow_write_table")
        await self.image.file.flush()
        header.l1_table_offset = offset
        header.l1_size = len(table)
        await self._write([l1_field(header)], "l1_grow_activate_table")

    def _settle_tables(self) -> None:
        refcounts, l2 = self.image.refcounts, self.image.l2
        for parts, dirty in ((self.refblocks, refcounts.dirty), (self.tables, l2.dirty)):
            for part in parts:
                part.table.writing = False
                if not part.table.dirty_end:
                    dirty.pop(part.table.index, None)

    def _put_back(self) -> None:
        image, refcounts = self.image, self.image.refcounts
        for part in (*self.refblocks, *self.tables):
            part.table.writing = False
            part.table.touch(part.first, part.end)
        image.l1_dirty |= self.l1
        image.l1_moved = image.l1_moved or self.l1_moved is not None
        refcounts.table_dirty |= self.reftable
        refcounts.table_moved = refcounts.table_moved or self.reftable_moved is not None
        image.frees[:0] = self.frees
        image.unused_data |= self.unused_data

    async def _free(self) -> None:
        """Count down what is unreferenced for good, except clusters that a read still looks at: they wait."""
        image = self.image
        for number, free in enumerate(self.frees):
            clusters = range(free.first, free.first + free.clusters)
            if image.reading and any(cluster in image.reading for cluster in clusters):
                image.frees.append(free)
                continue
            try:
                options = image.options
                await image.refcounts.settle(free, options.discard_freed if free.discard else options.discard_other)
            except BaseException:
                image.frees.extend(self.frees[number + 1 :])
                raise
        if self.frees:
            image.decompressed.clear()


def _take(dirty: dict[int, CachedTable], bits: int, table_bytes: int) -> list[_Dirty]:
    """The dirty parts of tables whose entries have so many bits, copied; they count as clean, and as being written."""
    parts = []
    for table in dirty.values():
        if not table.dirty_end:
            continue
        first, end = table.take_dirty()
        table.writing = True
        grain = min(GRAIN, table_bytes)
        start = (first * bits >> 3) // grain * grain
        stop = -(-end * bits // (8 * grain)) * grain
        entries = table.entries[start * 8 // bits : stop * 8 // bits]
        data = counts_to_bytes(entries, bits.bit_length() - 1)  # 64-bit counts look like table entries
        parts.append(_Dirty(table, first, end, table.offset + start, data))
    return parts


def _runs(offset: int, entries: dict[int, int]) -> list[tuple[int, bytes]]:
    """Entries of a table at `offset`, by their index, as parts to write: one for each run of adjoining entries."""
    runs: list[tuple[int, list[int]]] = []
    for index in sorted(entries):
        if runs and runs[-1][0] + len(runs[-1][1]) == index:
            runs[-1][1].append(entries[index])
        else:
            runs.append((index, [entries[index]]))
    return [(offset + 8 * first, table_to_bytes(run)) for first, run in runs]
